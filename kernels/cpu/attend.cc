// Attention in the manner of FlashAttention and Flash-Decoding (arXiv 2205.14135, 2307.08691): blocks of slots with a
// running maximum, segments of blocks apart.
//
//   y[t, h] = sum_s softmax_s( scale * q[t, h] . key[h / group, s] ) value[h / group, s]
//   s over the slots seen by token t, in a sliding layer those of the last `window` positions
//
// For a segment S:  m = max_S logit,  l = sum_S exp(logit - m),  y' = sum_S exp(logit - m) value;
// two segments merge by scaling both to the larger m.
//
// All query heads that share a KV head pass together, so that its keys and values are read and widened once. Slots are
// cut into blocks and segments by their order alone: a token's result has the same bits whatever run it came in.
#include "kernels/cpu/attend.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/isa.h"

namespace edgellm {
namespace {

constexpr int64_t kBlock = 32;     // slots widened to float32 at once: keys and values of 64 dimensions stay in L1
constexpr int64_t kFewRows = 8;   // rows that read halves; more share keys and values that were widened once
constexpr int64_t kSegment = 256;  // slots a task of decoding
constexpr int64_t kRows = 24;      // query rows (tokens times heads of a group) a task of prefill
constexpr int64_t kInline = 1 << 16;  // multiplications that are not worth waking a thread for
constexpr float kNever = -std::numeric_limits<float>::infinity();

// Running softmax of `rows` rows over what a segment, or several merged ones, saw.
struct Partial {
  std::vector<float> most, total, y;

  Partial(int64_t rows, int64_t dim)
      : most(size_t(rows), kNever), total(size_t(rows), 0), y(size_t(rows * dim), 0) {}

  // This row's sums become relative to a larger maximum.
  void raise(int64_t row, int64_t dim, float now) {
    if (now == most[size_t(row)] || now == kNever) return;
    const float by = most[size_t(row)] == kNever ? 0 : std::exp(most[size_t(row)] - now);
    most[size_t(row)] = now;
    total[size_t(row)] *= by;
    for (int64_t i = 0; i < dim; ++i) y[size_t(row * dim + i)] *= by;
  }

  void merge(Partial& other, int64_t dim) {
    for (size_t row = 0; row < most.size(); ++row) {
      const float now = std::max(most[row], other.most[row]);
      raise(int64_t(row), dim, now);
      other.raise(int64_t(row), dim, now);
      total[row] += other.total[row];
      for (size_t i = row * size_t(dim); i < (row + 1) * size_t(dim); ++i) y[i] += other.y[i];
    }
  }
};

// What one task works on: tokens [first, first + tokens) of one KV head, all heads of its group: row = token, head.
struct Task {
  const Attention& a;
  const KVCache& cache;
  const Seen& seen;
  const Tokens& run;
  int64_t head, first, tokens;

  int64_t group() const { return a.heads / a.kv_heads; }
  int64_t rows() const { return tokens * group(); }
  int64_t last() const { return seen.committed + first + tokens; }  // slots that the last token sees

  // Rotated and scaled, [rows, dim].
  std::vector<float> rotated() const {
    std::vector<float> q(size_t(rows() * a.head_dim));
    for (int64_t row = 0; row < rows(); ++row) {
      const int64_t t = first + row / group();
      float* to = &q[size_t(row * a.head_dim)];
      turn(a, run, t, head_of(a, run, t, head * group() + row % group()), run.q_norm, to);
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] *= a.scale;
    }
    return q;
  }

  void segment(const float* q, int64_t begin, int64_t end, Partial& out, const Isa& isa) const {
    static thread_local std::vector<float> key, value, s;  // grow to the largest once, then stay
    const int dim = int(a.head_dim), stride = int(kBlock), count = int(rows());
    const bool few = rows() <= kFewRows;
    if (!few) key.resize(size_t(kBlock * dim)), value.resize(key.size());
    s.resize(size_t(rows() * kBlock));
    for (int64_t from = begin; from < end; from += kBlock) {
      const int64_t n = std::min(kBlock, end - from);
      if (a.window && !near(from, n)) continue;
      // Committed and staged slots each lie side by side.
      const int64_t split = std::max<int64_t>(0, std::min(n, seen.committed - from));
      const int parts[2][2] = {{0, int(split)}, {int(split), int(n - split)}};
      for (const auto& [at, size] : parts) {
        if (!size) continue;
        const uint16_t *keys = cache.key + place(from + at), *values = cache.value + place(from + at);
        if (few) {
          isa.scores_half(q, count, keys, size, dim, s.data() + at, stride);
        } else {
          isa.from_half(keys, key.data() + at * dim, size * dim);
          isa.from_half(values, value.data() + at * dim, size * dim);
        }
      }
      if (!few) isa.scores(q, count, key.data(), int(n), dim, s.data(), stride);
      for (int64_t row = 0; row < rows(); ++row) weigh(row, from, n, &s[size_t(row * kBlock)], out, isa);
      if (!few) isa.mix(s.data(), stride, count, value.data(), int(n), dim, out.y.data());
      for (const auto& [at, size] : parts)
        if (few && size) isa.mix_half(s.data() + at, stride, count, cache.value + place(from + at), size, dim, out.y.data());
    }
  }

 private:
  // Where slot i of those seen lies in key and value.
  int64_t place(int64_t i) const { return (head * cache.capacity + seen.slot(i)) * a.head_dim; }

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
    const int64_t t = first + row / group(), sees = seen.committed + t + 1;
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

}  // namespace

void attend(const Attention& a, const KVCache& cache, const Seen& seen, const Tokens& tokens, float* y,
            const Pool& pool) {
  const Isa& isa = edgellm::isa();
  const int64_t dim = a.head_dim, group = a.heads / a.kv_heads, per_task = std::max<int64_t>(1, kRows / group);
  const int64_t runs = (seen.steps + per_task - 1) / per_task;
  auto task = [&](int64_t head, int64_t run) {
    const int64_t first = run * per_task;
    return Task{a, cache, seen, tokens, head, first, std::min(per_task, seen.steps - first)};
  };
  auto write = [&](const Task& t, const Partial& sum) {
    for (int64_t row = 0; row < t.rows(); ++row) {
      float* to = y + ((t.first + row / group) * a.heads + t.head * group + row % group) * dim;
      for (int64_t i = 0; i < dim; ++i) to[i] = sum.y[size_t(row * dim + i)] / sum.total[size_t(row)];
    }
  };
  const int64_t segments = runs > 1 ? 1 : (task(0, 0).last() + kSegment - 1) / kSegment;
  if (segments > 1) {  // few queries, long context: segments in parallel, then merged in order
    std::vector<Partial> parts(size_t(a.kv_heads * segments), Partial(task(0, 0).rows(), dim));
    auto one = [&](size_t i) {
      const Task t = task(int64_t(i) / segments, 0);
      const int64_t begin = int64_t(i) % segments * kSegment;
      t.segment(t.rotated().data(), begin, std::min(begin + kSegment, t.last()), parts[i], isa);
    };
    parallel(pool, parts.size(), one);
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      Partial& sum = parts[size_t(head * segments)];
      for (int64_t i = 1; i < segments; ++i) sum.merge(parts[size_t(head * segments + i)], dim);
      write(task(head, 0), sum);
    }
    return;
  }
  auto one = [&](size_t i) {
    const Task t = task(int64_t(i) / runs, int64_t(i) % runs);
    const std::vector<float> q = t.rotated();
    Partial sum(t.rows(), dim);
    for (int64_t begin = 0; begin < t.last(); begin += kSegment) {
      Partial part(t.rows(), dim);
      t.segment(q.data(), begin, std::min(begin + kSegment, t.last()), begin ? part : sum, isa);
      if (begin) sum.merge(part, dim);
    }
    write(t, sum);
  };
  if (a.heads * seen.steps * task(0, runs - 1).last() * dim < kInline)
    for (int64_t i = 0; i < a.kv_heads * runs; ++i) one(size_t(i));
  else
    parallel(pool, size_t(a.kv_heads * runs), one);
}

}  // namespace edgellm
