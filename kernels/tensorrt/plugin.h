// What both plugins share of IPluginV3: the three capabilities in one object, its attributes, and its creator.
#pragma once

#include <NvInferRuntime.h>

#include <memory>

#include "kernels/tensorrt/fields.h"

namespace edgellm {

constexpr const char* VERSION = "1";

// Types of tensors on the GPU that only TensorRT's descriptions carry.
inline bool half_type(nvinfer1::DataType type) {
  return type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
}

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuildV2,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(const Fields& fields) : fields_(fields) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  const char* getPluginVersion() const noexcept override { return VERSION; }
  const char* getPluginNamespace() const noexcept override { return ""; }
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t, const nvinfer1::DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    return 0;
  }
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t, const nvinfer1::PluginTensorDesc*,
                        int32_t) noexcept override {
    return 0;
  }
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return fields_.collection(); }

 protected:
  Fields fields_;
};

// One creator a plugin; its name is the ONNX operator's.
template <class P>
class Creator : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator() : names_(field_names(P::names())), collection_{static_cast<int32_t>(names_.size()), names_.data()} {}

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase) noexcept override {
    Fields fields(P::names());
    if (given == nullptr || !fields.read(*given)) return nullptr;
    return new P(fields);
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return P::NAME; }
  const char* getPluginVersion() const noexcept override { return VERSION; }
  const char* getPluginNamespace() const noexcept override { return ""; }

 private:
  std::vector<nvinfer1::PluginField> names_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace edgellm
