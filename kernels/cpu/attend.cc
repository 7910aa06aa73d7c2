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
#include <limits>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/score.h"

namespace edgellm {
namespace {

constexpr int64_t kBlock = 64;     // slots widened to float32 at once: keys and values of 64 dimensions stay in L1
constexpr int64_t kFewRows = 8;   // rows that read halves; more share keys and values that were widened once
constexpr int64_t kSegment = 512;  // slots a task of decoding
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

  // Rotated and scaled, [rows, dim].
  std::vector<float> rotated() const {
    std::vector<float> q(size_t(rows() * a.head_dim));
    for (int64_t row = 0; row < rows(); ++row) {
      const int64_t t = first + row / width;
      float* to = &q[size_t(row * a.head_dim)];
      turn(a, run, t, head_of(a, run, t, lead + row % width), run.q_norm, to);
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] *= a.scale;
    }
    return q;
  }

  bool votes(const Votes* votes) const {
    bool any = false;
    for (int64_t t = first; votes && t < first + tokens; ++t) any = any || votes->weight(t) > 0;
    return any;
  }

  void segment(const float* q, int64_t begin, int64_t end, Partial& out, std::optional<Paid>& paid, const Isa& isa) const {
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
      for (int64_t row = 0; row < rows(); ++row) {
        weigh(row, from, n, &s[size_t(row * kBlock)], out, isa);
        if (paid) paid->keep(row, from, n, &s[size_t(row * kBlock)], out.most[size_t(row)]);
      }
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

}  // namespace

void attend(const Attention& a, const KVCache& cache, const Seen& seen, const Tokens& tokens, const Votes* votes,
            float* y, const Pool& pool) {
  static const int64_t wanted = 2 * std::max(1u, std::thread::hardware_concurrency());  // tasks
  const Isa& isa = edgellm::isa();
  const int64_t dim = a.head_dim, group = a.heads / a.kv_heads, per_task = std::max<int64_t>(1, kRows / group);
  const int64_t runs = (seen.steps + per_task - 1) / per_task, slots = seen.committed + seen.steps;
  const int64_t segments = runs > 1 ? 1 : (slots + kSegment - 1) / kSegment;
  // Too few for all threads: the query heads of a group part, and read the same keys and values from cache.
  // Not where the largest of them counts.
  const int64_t alone = a.kv_heads * runs * segments;
  const int64_t shares = votes && votes->max() ? 1 : std::min(group, (wanted + alone - 1) / alone);
  auto task = [&](int64_t i) {
    const int64_t run = i % runs, share = i / runs % shares, head = i / runs / shares, first = run * per_task;
    const int64_t begin = group * share / shares, end = group * (share + 1) / shares;
    return Task{a, cache, seen, tokens, head, first, std::min(per_task, seen.steps - first), head * group + begin, end - begin};
  };
  auto write = [&](const Task& t, const Partial& sum) {
    for (int64_t row = 0; row < t.rows(); ++row) {
      float* to = y + ((t.first + row / t.width) * a.heads + t.lead + row % t.width) * dim;
      for (int64_t i = 0; i < dim; ++i) to[i] = sum.y[size_t(row * dim + i)] / sum.total[size_t(row)];
    }
  };
  const int64_t tasks = a.kv_heads * shares * runs;
  const int64_t size = votes ? votes->sums() * slots : 0;  // of a task's sums
  std::vector<float> sums(size_t(tasks * size), 0);
  auto vote = [&](int64_t i, const Partial& sum, std::optional<Paid>& paid) {
    const Task t = task(i);
    if (paid) paid->add(*votes, t.first, t.width, sum.most.data(), sum.total.data(), &sums[size_t(i * size)], slots);
  };
  auto settle = [&] {
    const int64_t each = tasks / a.kv_heads;
    for (int64_t i = 0; votes && i < tasks; ++i) {
      float *head = &sums[size_t(i / each * each * size)], *own = &sums[size_t(i * size)];
      for (int64_t j = 0; own != head && j < size; ++j) head[j] += own[j];
      if ((i + 1) % each == 0) votes->settle(cache, seen, i / each, head);
    }
  };
  if (segments > 1) {  // few queries, long context: segments in parallel, then merged in order
    std::vector<Partial> parts;
    std::vector<std::optional<Paid>> paid(size_t(tasks * segments));
    for (int64_t i = 0; i < tasks * segments; ++i) parts.emplace_back(task(i / segments).rows(), dim);
    auto one = [&](size_t i) {
      const Task t = task(int64_t(i) / segments);
      const int64_t begin = int64_t(i) % segments * kSegment, end = std::min(begin + kSegment, t.last());
      if (t.votes(votes)) paid[i].emplace(t.rows(), begin, end);
      t.segment(t.rotated().data(), begin, end, parts[i], paid[i], isa);
    };
    parallel(pool, parts.size(), one);
    for (int64_t i = 0; i < tasks; ++i) {
      Partial& sum = parts[size_t(i * segments)];
      for (int64_t j = 1; j < segments; ++j) sum.merge(parts[size_t(i * segments + j)], dim);
      for (int64_t j = 0; j < segments; ++j) vote(i, sum, paid[size_t(i * segments + j)]);
      write(task(i), sum);
    }
    return settle();
  }
  auto one = [&](size_t i) {
    const Task t = task(int64_t(i));
    const std::vector<float> q = t.rotated();
    Partial sum(t.rows(), dim);
    std::optional<Paid> paid;
    if (t.votes(votes)) paid.emplace(t.rows(), 0, t.last());
    for (int64_t begin = 0; begin < t.last(); begin += kSegment) {
      Partial part(t.rows(), dim);
      t.segment(q.data(), begin, std::min(begin + kSegment, t.last()), begin ? part : sum, paid, isa);
      if (begin) sum.merge(part, dim);
    }
    vote(int64_t(i), sum, paid);
    write(t, sum);
  };
  if (a.heads * seen.steps * slots * dim < kInline)
    for (int64_t i = 0; i < tasks; ++i) one(size_t(i));
  else
    parallel(pool, size_t(tasks), one);
  settle();
}

}  // namespace edgellm
