// An engine of standard operators, whose cache only grows: slot = position, so that cutting the sequence back is to write
// over it (runtime/append_only.py).
#pragma once
#include <string>
#include <vector>

#include "kernels/engine/backend.h"
#include "kernels/engine/embedding_rows.h"
#include "kernels/engine/manifest.h"
#include "kernels/engine/tensorrt_runner.h"

namespace edgellm {

class AppendOnly : public Backend {
 public:
  // Of a manifest with an engine. Throws a usage Error for another policy than full, or for more tokens than the engine
  // has slots; else as TensorRtRunner does.
  AppendOnly(const TensorRt& library, const std::string& folder, const Manifest& manifest, const KVPolicy& policy);

  // A run of more tokens than the engine takes is split into several.
  const float* run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>& control) override;
  void resize(const CacheLayout&) override {}  // the engine's cache has one size, which all its tokens fit
  size_t kv_bytes() const override { return runner_.kv_bytes(); }
  const std::string& library() const override { return runner_.library(); }

 private:
  EmbeddingRows embedded_;
  int64_t most_;  // tokens of one run
  std::vector<int64_t> positions_;
  TensorRtRunner runner_;
};

}  // namespace edgellm
