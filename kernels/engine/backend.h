// What a sequence needs of whatever runs its graph: this library (native_backend.h), ONNX Runtime (graph.h) or TensorRT
// (append_only.h, plugin_backend.h). runtime/backend.py.
#pragma once
#include <string>
#include <vector>

#include "kernels/engine/cache_memory.h"

namespace edgellm {

class Backend {
 public:
  virtual ~Backend() = default;
  // Runs ids [T] from position `first` on; float32 [vocabulary] of the last one, until the next run. control as
  // Cursor::control writes it. Throws Error (EDGELLM_BUNDLE, or EDGELLM_FAILED where CUDA fails).
  virtual const float* run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>& control) = 0;
  // Changes the cache to another layout's; as many first slots as both have keep their content. Throws Error.
  virtual void resize(const CacheLayout& layout) = 0;
  virtual size_t kv_bytes() const = 0;
  // The file of the library that was loaded to run it.
  virtual const std::string& library() const = 0;
};

}  // namespace edgellm
