// model.onnx.data mapped as a whole, and ONNX Runtime told to read the packed matrices there: runtime/weights.py, which
// says why.
#pragma once
#include <string>
#include <vector>

#include "kernels/engine/manifest.h"
#include "kernels/engine/mapped_file.h"
#include "kernels/engine/onnxruntime.h"

namespace edgellm {

class Weights {
 public:
  // Throws Error for a file that cannot be mapped, or ends before a matrix does.
  Weights(const OnnxRuntime& runtime, const std::string& folder, const std::vector<StoredMatrix>& matrices);
  // To the session that will be made with these options, and has to be gone before this object is.
  void give(ort::SessionOptions* options) const;

 private:
  const OnnxRuntime& runtime_;
  MappedFile file_;
  std::vector<std::string> names_;
  std::vector<ort::Held<ort::Value>> values_;
};

}  // namespace edgellm
