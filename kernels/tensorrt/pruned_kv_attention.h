// PrunedKVAttention (kernels/attention_reference.py) as a TensorRT plugin. Inputs: qkv, cos, sin, positions, control of
// all layers, key, value, position, score [kv_heads, capacity, planes], planes at least 1, and q_norm, k_norm where the
// node has eleven. Outputs: y, and the four buffers, which are the inputs' memory.
#pragma once

#include "kernels/tensorrt/plugin.h"

namespace edgellm {

class PrunedKVAttention : public Plugin {
 public:
  static constexpr const char* NAME = "PrunedKVAttention";
  static const std::vector<FieldName>& names();

  using Plugin::Plugin;
  const char* getPluginName() const noexcept override { return NAME; }
  nvinfer1::IPluginV3* clone() noexcept override { return new PrunedKVAttention(*this); }
  int32_t getNbOutputs() const noexcept override;
  int32_t getAliasedInput(int32_t output) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t, const nvinfer1::DataType* inputs,
                             int32_t) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& build) noexcept override;
  bool supportsFormatCombination(int32_t pos, const nvinfer1::DynamicPluginTensorDesc* ends, int32_t inputs,
                                 int32_t outputs) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t outputs) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs, const nvinfer1::PluginTensorDesc* out,
                        int32_t outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;

 private:
  bool has_norm_ = false;
};

}  // namespace edgellm
