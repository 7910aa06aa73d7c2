// Attention of few queries: heads and segments of the cache are parts, merged when all are done.
#include "kernels/cpu/few_queries.h"

#include <thread>

#include "kernels/cpu/attention_task.h"

namespace edgellm {
namespace {

// The share-th of so many of a KV head's query heads, for all tokens.
Task shared_task(const Attention& a, const KVCache& cache, const Seen& seen, const Tokens& tokens, int64_t head,
                 int64_t share, int64_t shares) {
  const int64_t group = a.heads / a.kv_heads, begin = group * share / shares, end = group * (share + 1) / shares;
  return {a, cache, seen, tokens, head, 0, seen.steps, head * group + begin, end - begin};
}

}  // namespace

int64_t FewQueries::begin(const Attention& a, const Control& control, const KVCache& cache, const Seen& seen,
                          const Tokens& tokens) {
  a_ = &a, cache_ = &cache, seen_ = &seen, tokens_ = &tokens;
  segments_ = (seen.committed + seen.steps + kSegment - 1) / kSegment;
  // Too few heads and segments for all threads: query heads of a group part, and read the same keys from cache.
  static const int64_t wanted = 2 * std::max(1u, std::thread::hardware_concurrency());
  shares_ = std::min(a.heads / a.kv_heads, (wanted + a.kv_heads * segments_ - 1) / (a.kv_heads * segments_));
  votes_ = Votes::of(control, tokens.positions, a.heads / a.kv_heads);
  if (votes_ && votes_->max()) shares_ = 1;  // the largest of a group is found in one place
  const int64_t parts = a.kv_heads * shares_ * segments_;
  if (votes_ && int64_t(paid_.size()) < parts) paid_.resize(size_t(parts));
  q_.resize(size_t(seen.steps * a.heads * a.head_dim));
  if (int64_t(sums_.size()) < parts) sums_.resize(size_t(parts), Partial(0, 0));
  float* q = q_.data();
  for (int64_t i = 0; i < a.kv_heads * shares_; ++i) {
    const Task task = shared_task(a, cache, seen, tokens, i / shares_, i % shares_, shares_);
    task.rotate(q);
    q += task.rows() * a.head_dim;
  }
  return parts;
}

void FewQueries::part(int64_t i) {
  const int64_t segment = i % segments_, share = i / segments_;
  const Task task = shared_task(*a_, *cache_, *seen_, *tokens_, share / shares_, share % shares_, shares_);
  Partial& sum = sums_[size_t(i)];
  sum.clear(task.rows(), a_->head_dim);
  const int64_t from = segment * kSegment, to = std::min(from + kSegment, task.last());
  Paid* paid = votes_ ? &paid_[size_t(i)] : nullptr;
  if (paid) paid->clear(task.rows(), from, to);
  task.segment(&q_[size_t(task.lead * seen_->steps * a_->head_dim)], from, to, sum, paid, isa());
}

void FewQueries::end(float* y) {
  for (int64_t share = 0; share < a_->kv_heads * shares_; ++share) {
    Partial& sum = sums_[size_t(share * segments_)];
    for (int64_t i = 1; i < segments_; ++i) sum.merge(sums_[size_t(share * segments_ + i)], a_->head_dim);
    const Task task = shared_task(*a_, *cache_, *seen_, *tokens_, share / shares_, share % shares_, shares_);
    task.write(sum, y);
    if (!votes_) continue;
    if (share % shares_ == 0) head_.assign(size_t(votes_->sums() * seen_->slots()), 0);
    for (int64_t i = 0; i < segments_; ++i)
      paid_[size_t(share * segments_ + i)].add(*votes_, 0, task.width, sum, head_.data(), seen_->slots());
    if ((share + 1) % shares_ == 0) votes_->settle(*cache_, *seen_, task.head, head_.data());
  }
}

}  // namespace edgellm
