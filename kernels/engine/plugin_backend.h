// An engine with our plugins: the CPU's cache, slot for slot, in the engine's buffers (runtime/plugin_backend.py).
#pragma once
#include <string>
#include <vector>

#include "kernels/engine/backend.h"
#include "kernels/engine/embedding_rows.h"
#include "kernels/engine/manifest.h"
#include "kernels/engine/tensorrt_runner.h"

namespace edgellm {

class PluginBackend : public Backend {
 public:
  // Of a manifest with an engine; plugins: libedgellm_tensorrt.so. Uploads the weights. Throws a usage Error for a policy
  // that needs more slots or scores than the engine has, else as TensorRtRunner does.
  PluginBackend(const TensorRt& library, const std::string& folder, const Manifest& manifest, const KVPolicy& policy,
                const CacheLayout& layout, const std::string& plugins);

  const float* run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>& control) override;
  // The buffers stay; only what does not fit them is refused.
  void resize(const CacheLayout& layout) override;
  size_t kv_bytes() const override { return runner_.kv_bytes(); }
  const std::string& library() const override { return runner_.library(); }

 private:
  EmbeddingRows embedded_;
  int64_t capacity_, planes_;
  std::string policy_;
  std::vector<int64_t> positions_;
  TensorRtRunner runner_;
};

}  // namespace edgellm
