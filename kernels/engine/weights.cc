#include "kernels/engine/weights.h"

#include "kernels/engine/error.h"

namespace edgellm {

Weights::Weights(const OnnxRuntime& runtime, const std::string& folder, const std::vector<StoredMatrix>& matrices)
    : runtime_(runtime), file_(folder, kWeights) {
  const std::string what = std::string(kWeights) + " cannot be given to ONNX Runtime";
  ort::Held<ort::MemoryInfo> memory(runtime.api);
  runtime.check(ort::cpu_memory(runtime.api, memory.put()), EDGELLM_FAILED, what, kAgain);
  file_.in_huge_pages();
  char* data = const_cast<char*>(file_.bytes().data());  // initializers are only read
  for (const StoredMatrix& matrix : matrices) {
    if (matrix.bytes > file_.bytes().size() || matrix.offset > file_.bytes().size() - matrix.bytes)
      throw bundle_error(std::string(kWeights) + " ends before " + matrix.name + " does");
    const int64_t shape = int64_t(matrix.bytes);
    ort::Held<ort::Value> value(runtime.api);
    runtime.check(ort::tensor_over(runtime.api, memory.get(), data + matrix.offset, matrix.bytes, &shape, 1, ort::kUint8, value.put()),
                  EDGELLM_FAILED, what, kAgain);
    names_.push_back(matrix.name), values_.push_back(std::move(value));
  }
}

void Weights::give(ort::SessionOptions* options) const {
  for (size_t i = 0; i < values_.size(); ++i)
    runtime_.check(ort::add_initializer(runtime_.api, options, names_[i].c_str(), values_[i].get()), EDGELLM_FAILED,
                   names_[i] + " cannot be given to ONNX Runtime", kAgain);
}

}  // namespace edgellm
