// launch LIBRARY matmul ROWS | attention TOKENS: a plugin made as TensorRT would, enqueued on made-up addresses.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using namespace nvinfer1;
using Field = PluginField;

PluginTensorDesc desc(DataType type, std::vector<int64_t> shape) {
  PluginTensorDesc found{};
  found.type = type;
  found.dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) found.dims.d[i] = shape[i];
  return found;
}

int main(int count, char** given) {
  if (count != 4) return 2;
  void* library = dlopen(given[1], RTLD_NOW);
  if (library == nullptr) return 3;
  using Get = IPluginCreatorInterface* const* (*)(int32_t&);
  int32_t creators = 0;
  IPluginCreatorInterface* const* all = reinterpret_cast<Get>(dlsym(library, "getCreators"))(creators);
  const bool matmul = std::strcmp(given[2], "matmul") == 0;
  const int64_t tokens = std::atoi(given[3]);
  const int32_t n_out = 200, k_in = 128, bits = 4, group = 64, one = 1;
  const int32_t heads = 8, kv_heads = 2, head_dim = 64, window = 7, layer = 3;
  const float scale = 0.125f, softcap = 30, epsilon = 1e-5f;
  std::vector<Field> fields = {{"n_out", &n_out, PluginFieldType::kINT32, 1},
      {"k_in", &k_in, PluginFieldType::kINT32, 1}, {"bits", &bits, PluginFieldType::kINT32, 1}, {"group", &group, PluginFieldType::kINT32, 1},
      {"zero", "min", PluginFieldType::kCHAR, 3}, {"n", &one, PluginFieldType::kINT32, 1},
      {"m", &one, PluginFieldType::kINT32, 1}, {"axis", "in", PluginFieldType::kCHAR, 2}};
  if (!matmul) {
    fields = {{"heads", &heads, PluginFieldType::kINT32, 1}, {"kv_heads", &kv_heads, PluginFieldType::kINT32, 1},
        {"head_dim", &head_dim, PluginFieldType::kINT32, 1}, {"scale", &scale, PluginFieldType::kFLOAT32, 1},
        {"window", &window, PluginFieldType::kINT32, 1}, {"softcap", &softcap, PluginFieldType::kFLOAT32, 1},
        {"layer", &layer, PluginFieldType::kINT32, 1}, {"epsilon", &epsilon, PluginFieldType::kFLOAT32, 1}};
  }
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  auto* creator = static_cast<IPluginCreatorV3One*>(all[matmul ? 0 : 1]);
  const PluginFieldCollection lacking{2, fields.data()};
  if (creator->createPlugin("x", &lacking, TensorRTPhase::kRUNTIME) != nullptr) return 4;
  IPluginV3* plugin = creator->createPlugin("x", &collection, TensorRTPhase::kRUNTIME);
  if (plugin == nullptr) return 5;
  std::vector<PluginTensorDesc> in = {desc(DataType::kHALF, {tokens, k_in}), desc(DataType::kINT8, {1000}),
                                      desc(DataType::kHALF, {n_out})};
  if (!matmul) {
    in = {desc(DataType::kHALF, {tokens, (heads + 2 * kv_heads) * head_dim}), desc(DataType::kFLOAT, {tokens, 32}),
          desc(DataType::kFLOAT, {tokens, 32}), desc(DataType::kINT64, {tokens}), desc(DataType::kINT64, {5, 13}),
          desc(DataType::kHALF, {kv_heads, 600, head_dim}), desc(DataType::kHALF, {kv_heads, 600, head_dim}),
          desc(DataType::kINT32, {kv_heads, 600}), desc(DataType::kFLOAT, {kv_heads, 600, 2})};
  }
  std::vector<const void*> inputs;
  for (size_t i = 0; i < in.size(); ++i) inputs.push_back(reinterpret_cast<const void*>(0x1000 * (i + 1)));
  std::vector<void*> outputs = {reinterpret_cast<void*>(0xa000)};
  for (size_t i = 5; !matmul && i < 9; ++i) outputs.push_back(const_cast<void*>(inputs[i]));  // in place
  auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  auto* attached = static_cast<IPluginV3OneRuntime*>(
      runtime->attachToContext(nullptr)->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  attached->onShapeChange(in.data(), static_cast<int32_t>(in.size()), nullptr, 0);
  void* workspace = reinterpret_cast<void*>(0x100000);
  return attached->enqueue(in.data(), nullptr, inputs.data(), outputs.data(), workspace, nullptr);
}
