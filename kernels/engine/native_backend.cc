#include "kernels/engine/native_backend.h"

#include <numeric>

namespace edgellm {

edgellm_shape shape_of(const Manifest& m) { return {m.layers, m.kv_heads, m.head_dim, m.vocabulary, m.kv_int8 ? 8 : 16}; }

NativeBackend::NativeBackend(std::unique_ptr<Decoder> decoder, const CacheLayout& layout)
    : decoder_(std::move(decoder)), logits_(size_t(decoder_->graph().vocabulary())) {
  resize(layout);
}

void NativeBackend::resize(const CacheLayout& layout) {
  CacheMemory wanted(layout);
  if (!cache_.buffers().empty()) wanted.copy_from(cache_);
  cache_ = std::move(wanted);
  const std::vector<Buffer>& buffers = cache_.buffers();  // key, value, position and score of a layer, then the next one's
  caches_.clear();
  for (size_t i = 0; i + 3 < buffers.size(); i += 4)
    caches_.push_back({cache_.at(buffers[i]), cache_.at(buffers[i + 1]), static_cast<int32_t*>(cache_.at(buffers[i + 2])),
                       buffers[i + 2].shape[1], static_cast<float*>(cache_.at(buffers[i + 3])), layout.planes, layout.int8});
}

const float* NativeBackend::run(const int32_t* ids, int64_t count, int64_t first, const std::vector<int64_t>& control) {
  const int64_t last = count - 1;
  ids_.assign(ids, ids + count);
  positions_.resize(size_t(count));
  std::iota(positions_.begin(), positions_.end(), first);
  decoder_->run({ids_.data(), positions_.data(), count, &last, 1, control.data(), caches_.data(), logits_.data()});
  return logits_.data();
}

}  // namespace edgellm
