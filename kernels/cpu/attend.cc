// Attention in the manner of FlashAttention and Flash-Decoding (arXiv 2205.14135, 2307.08691): blocks of slots with a
// running maximum, segments of blocks apart.
//
//   y[t, h] = sum_s softmax_s( scale * q[t, h] . key[h / group, s] ) value[h / group, s]
//   s over the slots seen by token t, in a sliding layer those of the last `window` positions
//
// For a segment S:  m = max_S logit,  l = sum_S exp(logit - m),  y' = sum_S exp(logit - m) value;
// two segments merge by scaling both to the larger m.
//
// Query heads that share a KV head pass together, so that its keys and values are read and widened once. Slots are
// cut into blocks and segments by their order alone: a token's result has the same bits whatever run it came in.
#include "kernels/cpu/attend.h"

#include <cmath>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/cpu/few_queries.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kv_row.h"

namespace edgellm {
namespace {

constexpr int64_t kBlock = 128;    // slots between two looks at the running maximum
constexpr int64_t kWiden = 64;     // slots widened to float32 at once: of 64 dimensions they stay in L1
constexpr int64_t kFetched = 32;   // slots whose values are fetched at once
constexpr int64_t kFewRows = 8;   // rows that read halves; more share keys and values that were widened once
constexpr int64_t kSegment = 512;  // slots a task of decoding
constexpr int64_t kRows = 24;      // query rows (tokens times heads of a group) a task of prefill
constexpr int64_t kInline = 1 << 16;  // multiplications that are not worth waking a thread for

// What one task works on: tokens [first, first + tokens) and query heads [lead, lead + width) of all; these share KV head
// `head`: row = token, query head.
struct Task {
  const Attention& a;
  const KVCache& cache;
  const Seen& seen;
  const Tokens& run;
  int64_t head, first, tokens, lead, width;

  int64_t rows() const { return tokens * width; }
  int64_t last() const { return seen.committed + first + tokens; }  // slots that the last token sees

  // Rotated and scaled queries, q [rows, dim].
  void rotate(float* q) const {
    for (int64_t row = 0; row < rows(); ++row) {
      const int64_t t = first + row / width;
      float* to = q + row * a.head_dim;
      turn(a, run, t, head_of(a, run, t, lead + row % width), run.q_norm, to);
      if (cache.int8) hadamard(to, a.head_dim);
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] *= a.scale;
    }
  }

  // y's rows of this task, from the sums over all slots.
  void write(const Partial& sum, float* y) const {
    for (int64_t row = 0; row < rows(); ++row) {
      float* to = y + ((first + row / width) * a.heads + lead + row % width) * a.head_dim;
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] = sum.y[size_t(row * a.head_dim + i)] / sum.total[size_t(row)];
    }
  }

  // paid: keeps the weights that votes need; null: there are none.
  void segment(const float* q, int64_t begin, int64_t end, Partial& out, Paid* paid, const Isa& isa) const {
    static thread_local std::vector<float> wide, s;  // grow to the largest once, then stay
    const int dim = int(a.head_dim), stride = int(kBlock), count = int(rows());
    const bool few = rows() <= kFewRows;
    if (!few) wide.resize(size_t(kWiden * dim));
    s.resize(size_t(rows() * kBlock));
    for (int64_t from = begin; from < end; from += kBlock) {
      const int64_t n = std::min(kBlock, end - from);
      if (a.window && !near(from, n)) continue;
      each_run(from, n, few ? kFetched : kWiden, [&](int64_t at, int size) {
        const uint8_t* keys = slot(cache.key, from + at);
        if (few) fetch(slot(cache.value, from + at), size);
        if (!few)
          widen(keys, size, wide.data(), isa), isa.scores(q, count, wide.data(), size, dim, s.data() + at, stride);
        else if (cache.int8)
          isa.scores_int8(q, count, reinterpret_cast<const int8_t*>(keys), size, dim, s.data() + at, stride);
        else
          isa.scores_half(q, count, reinterpret_cast<const uint16_t*>(keys), size, dim, s.data() + at, stride);
        if (cache.int8) times_scales(keys, size, s.data() + at);
      });
      for (int64_t row = 0; row < rows(); ++row) {
        weigh(row, from, n, &s[size_t(row * kBlock)], out, isa);
        if (paid) paid->keep(row, from, n, &s[size_t(row * kBlock)], out.most[size_t(row)]);
      }
      each_run(from, n, few ? kBlock : kWiden, [&](int64_t at, int size) {
        const uint8_t* values = slot(cache.value, from + at);
        if (cache.int8) times_scales(values, size, s.data() + at);
        if (!few)
          widen(values, size, wide.data(), isa), isa.mix(s.data() + at, stride, count, wide.data(), size, dim, out.y.data());
        else if (cache.int8)
          isa.mix_int8(s.data() + at, stride, count, reinterpret_cast<const int8_t*>(values), size, dim, out.y.data());
        else
          isa.mix_half(s.data() + at, stride, count, reinterpret_cast<const uint16_t*>(values), size, dim, out.y.data());
      });
    }
  }

 private:
  // Where slot i of those seen lies in key or value.
  const uint8_t* slot(void* buffer, int64_t i) const { return cache.row(buffer, head, seen.slot(i), a.head_dim); }

  // body(first, count) for runs of at most `most` of n slots from `from` on that lie side by side, as committed and staged
  // ones each do.
  template <typename Body>
  void each_run(int64_t from, int64_t n, int64_t most, Body body) const {
    const int64_t split = std::max<int64_t>(0, std::min(n, seen.committed - from));
    for (int64_t at = 0, size; at < n; at += size) {
      size = std::min(most, (at < split ? split : n) - at);
      body(at, int(size));
    }
  }

  // Values that will be mixed once their weights are known: that goes too fast to fetch them by itself.
  void fetch(const uint8_t* values, int count) const {
    for (const uint8_t* end = values + count * cache.row_bytes(a.head_dim); values < end; values += 64) __builtin_prefetch(values);
  }

  // Slots side by side as floats, codes without their scales.
  void widen(const uint8_t* rows, int count, float* to, const Isa& isa) const {
    const int dim = int(a.head_dim);
    if (!cache.int8) return isa.from_half(reinterpret_cast<const uint16_t*>(rows), to, count * dim);
    for (int j = 0; j < count; ++j, rows += cache.row_bytes(dim))
      isa.from_int8(reinterpret_cast<const int8_t*>(rows), to + j * dim, dim);
  }

  // All rows of s times the scales of n slots side by side, which products of codes lack.
  void times_scales(const uint8_t* slots, int n, float* s) const {
    float scale[kBlock];
    for (int j = 0; j < n; ++j, slots += cache.row_bytes(a.head_dim)) scale[j] = scale_of(slots, a.head_dim);
    for (int64_t row = 0; row < rows(); ++row, s += kBlock)
      for (int j = 0; j < n; ++j) s[j] *= scale[j];
  }

  int64_t oldest(int64_t t) const { return run.positions[t] - a.window + 1; }

  // Whether any token of the task sees any of these slots.
  bool near(int64_t from, int64_t n) const {
    const int32_t* position = cache.position + head * cache.capacity;
    for (int64_t j = from; j < from + n; ++j)
      if (position[seen.slot(j)] >= oldest(first)) return true;
    return false;
  }

  // Logits s [n] of a row become weights relative to the row's maximum so far; unseen slots weigh 0.
  void weigh(int64_t row, int64_t from, int64_t n, float* s, Partial& out, const Isa& isa) const {
    const int64_t t = first + row / width, sees = seen.committed + t + 1;
    if (a.softcap > 0)
      for (int64_t j = 0; j < n; ++j) s[j] = a.softcap * std::tanh(s[j] / a.softcap);
    for (int64_t j = std::max<int64_t>(0, sees - from); j < n; ++j) s[j] = kNever;
    if (a.window) {
      const int32_t* position = cache.position + head * cache.capacity;
      for (int64_t j = 0; j < n; ++j)
        if (position[seen.slot(from + j)] < oldest(t)) s[j] = kNever;
    }
    const float most = std::max(out.most[size_t(row)], isa.largest(s, int(n)));
    out.raise(row, a.head_dim, most);
    if (most == kNever)
      std::fill(s, s + n, 0.0f);
    else
      out.total[size_t(row)] += isa.exponentials(s, int(n), most);
  }
};

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

void attend(const Attention& a, const Control& control, const KVCache& cache, const Seen& seen, const Tokens& tokens,
            float* y, const Pool& pool) {
  const int64_t dim = a.head_dim, group = a.heads / a.kv_heads, per_task = std::max<int64_t>(1, kRows / group);
  const int64_t runs = (seen.steps + per_task - 1) / per_task, slots = seen.slots();
  const bool small = a.heads * seen.steps * slots * dim < kInline;
  if (runs == 1) {
    static thread_local FewQueries few;  // grows to the longest context once, then stays
    FewQueries& queries = few;
    const int64_t parts = queries.begin(a, control, cache, seen, tokens);
    auto one = [&](size_t i) { queries.part(int64_t(i)); };
    for (int64_t i = 0; small && i < parts; ++i) one(size_t(i));
    if (!small) parallel(pool, size_t(parts), one);
    queries.end(y);
    return;
  }
  const std::optional<Votes> votes = Votes::of(control, tokens.positions, group);
  std::vector<std::vector<float>> sums(size_t(votes ? a.kv_heads * runs : 0));
  auto one = [&](size_t i) {
    const int64_t head = int64_t(i) / runs, first = int64_t(i) % runs * per_task;
    const Task t{a, cache, seen, tokens, head, first, std::min(per_task, seen.steps - first), head * group, group};
    std::vector<float> q(size_t(t.rows() * dim));
    t.rotate(q.data());
    Partial sum(t.rows(), dim);
    static thread_local Paid kept;  // grows to the longest context once, then stays
    Paid* paid = votes && votes->any(t.first, t.tokens) ? &kept : nullptr;
    if (paid) paid->clear(t.rows(), 0, t.last());
    for (int64_t begin = 0; begin < t.last(); begin += kSegment) {
      Partial part(t.rows(), dim);
      t.segment(q.data(), begin, std::min(begin + kSegment, t.last()), begin ? part : sum, paid, isa());
      if (begin) sum.merge(part, dim);
    }
    t.write(sum, y);
    if (!paid) return;
    sums[i].assign(size_t(votes->sums() * slots), 0);
    paid->add(*votes, t.first, t.width, sum, sums[i].data(), slots);
  };
  parallel(pool, size_t(a.kv_heads * runs), one);
  for (int64_t head = 0; votes && head < a.kv_heads; ++head) votes->settle(cache, seen, head, &sums[size_t(head * runs)], runs);
}

}  // namespace edgellm
