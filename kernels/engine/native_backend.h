// A bundle's decoder run by its operators alone, behind a session of the C API; runtime/native_backend.py.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kernels/engine/backend.h"
#include "kernels/engine/decoder.h"
#include "kernels/engine/manifest.h"

namespace edgellm {

// What the manifest says of the graph.
edgellm_shape shape_of(const Manifest& manifest);

class NativeBackend : public Backend {
 public:
  NativeBackend(std::unique_ptr<Decoder> decoder, const CacheLayout& layout);

  const float* run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>& control) override;
  void resize(const CacheLayout& layout) override;
  size_t kv_bytes() const override { return cache_.bytes(); }
  const std::string& library() const override { return library_; }

 private:
  std::unique_ptr<Decoder> decoder_;
  CacheMemory cache_;
  std::vector<KVCache> caches_;  // by layer, in cache_
  std::vector<int64_t> ids_, positions_;
  std::vector<float> logits_;
  std::string library_;  // "": none is needed
};

}  // namespace edgellm
