// One sequence of a bundle's model: its tokens, its KV cache, and the logits behind it (runtime/session.py, kv_cache.py).
#pragma once
#include <memory>
#include <vector>

#include "kernels/engine/backend.h"
#include "kernels/engine/cursor.h"
#include "kernels/engine/manifest.h"

namespace edgellm {

// The cache that a sequence wants of its backend.
CacheLayout layout_of(const Manifest& manifest, const KVPolicy& policy);

class Sequence {
 public:
  Sequence(std::unique_ptr<Backend> backend, const Manifest& manifest, const KVPolicy& policy);

  // Tokens of prompt and continuation: the context, or less where a full cache has a smaller budget.
  int64_t limit() const { return policy_.name == "full" ? policy_.budget : context_; }
  // Throws Error for no ids, ids outside the vocabulary, or more than `limit` behind `before` ones.
  void check(const int32_t* ids, size_t count, int64_t before) const;
  // Logits after ids [count], in place of what the sequence held. keep: what the cache has of their beginning is not run
  // again, but for the last id, whose logits are wanted. Throws as `check` does, with the sequence as it was then; after a
  // failed run it is empty.
  const float* extend(const int32_t* ids, size_t count, bool keep);
  // Appends one token.
  const float* step(int32_t id);
  void reset();

  const std::vector<int32_t>& tokens() const { return tokens_; }
  int64_t vocabulary() const { return vocabulary_; }
  int64_t reused() const { return reused_; }
  int64_t evicted() const { return cursor_.evicted(); }
  size_t kv_bytes() const { return backend_->kv_bytes(); }
  const std::string& library() const { return backend_->library(); }

 private:
  const float* run(const int32_t* ids, int64_t count);
  void make_room(int64_t tokens);
  void fit(const std::vector<int64_t>& budgets);

  KVPolicy policy_;
  int64_t context_, vocabulary_;
  CacheLayout usual_, layout_;
  Cursor cursor_;
  std::unique_ptr<Backend> backend_;
  std::vector<int32_t> tokens_;
  std::vector<int64_t> control_;
  int64_t reused_ = 0;
};

}  // namespace edgellm
