// What TensorRT's registry asks a plugin library for: load_library(path) calls these two.
#include "kernels/tensorrt/nm_matmul.h"
#include "kernels/tensorrt/pruned_kv_attention.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static edgellm::Creator<edgellm::NMMatMul> matmul;
  static edgellm::Creator<edgellm::PrunedKVAttention> attention;
  static nvinfer1::IPluginCreatorInterface* const all[] = {&matmul, &attention};
  count = 2;
  return all;
}
