// NMMatMul (kernels/reference.py) as a TensorRT plugin: x [T, k_in], tiles, and a bias [n_out] where the node has a
// third input. The input's norm and the residual are nodes of their own on a GPU.
#pragma once

#include "kernels/tensorrt/plugin.h"

namespace edgellm {

class NMMatMul : public Plugin {
 public:
  static constexpr const char* NAME = "NMMatMul";
  static const std::vector<FieldName>& names();

  using Plugin::Plugin;
  const char* getPluginName() const noexcept override { return NAME; }
  nvinfer1::IPluginV3* clone() noexcept override { return new NMMatMul(*this); }
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t, const nvinfer1::DataType* inputs,
                             int32_t) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& build) noexcept override;
  bool supportsFormatCombination(int32_t pos, const nvinfer1::DynamicPluginTensorDesc* ends, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t outputs) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs, const nvinfer1::PluginTensorDesc* out,
                        int32_t outputs) noexcept override;

 private:
  int32_t width() const;  // of a row of y
  bool has_bias_ = false;
};

}  // namespace edgellm
