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
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kv_row.h"
#include "kernels/cpu/partial.h"
#include "kernels/cpu/score.h"

namespace edgellm {

// Slots between two looks at the running maximum: few enough that what is fetched next stays in cache until it is read,
// and that floats made of them, of 64 dimensions, stay in L1.
constexpr int64_t kBlock = 64;
constexpr int64_t kUnwidened = 8;  // rows that read halves; more share keys and values that were widened once
constexpr int64_t kSegment = 512;  // slots a task of decoding

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
    const bool few = rows() <= kUnwidened;
    if (!few) wide.resize(size_t(kBlock * dim));
    s.resize(size_t(rows() * kBlock));
    for (int64_t from = begin; from < end; from += kBlock) {
      const int64_t n = std::min(kBlock, end - from);
      if (a.window && !near(from, n)) continue;
      each_run(from, n, [&](int64_t at, int size) {
        const uint8_t *keys = slot(cache.key, from + at), *next = slot(cache.value, from + at);
        if (!few)
          widen(keys, size, wide.data(), isa), isa.scores(q, count, wide.data(), size, dim, s.data() + at, stride);
        else if (cache.int8)
          isa.scores_int8(q, count, reinterpret_cast<const int8_t*>(keys), size, dim, s.data() + at, stride, next);
        else
          isa.scores_half(q, count, reinterpret_cast<const uint16_t*>(keys), size, dim, s.data() + at, stride, next);
        if (cache.int8) times_scales(keys, size, s.data() + at);
      });
      for (int64_t row = 0; row < rows(); ++row) {
        weigh(row, from, n, &s[size_t(row * kBlock)], out, isa);
        if (paid) paid->keep(row, from, n, &s[size_t(row * kBlock)], out.most[size_t(row)]);
      }
      each_run(from, n, [&](int64_t at, int size) {
        const uint8_t *values = slot(cache.value, from + at), *next = after(from + n, at);
        if (cache.int8) times_scales(values, size, s.data() + at);
        if (!few)
          widen(values, size, wide.data(), isa), isa.mix(s.data() + at, stride, count, wide.data(), size, dim, out.y.data());
        else if (cache.int8)
          isa.mix_int8(s.data() + at, stride, count, reinterpret_cast<const int8_t*>(values), size, dim, out.y.data(), next);
        else
          isa.mix_half(s.data() + at, stride, count, reinterpret_cast<const uint16_t*>(values), size, dim, out.y.data(), next);
      });
    }
  }

 private:
  // Where slot i of those seen lies in key or value.
  const uint8_t* slot(void* buffer, int64_t i) const { return cache.row(buffer, head, seen.slot(i), a.head_dim); }

  // Keys that are read once slots before i are done with, from the at-th on: this head's, else the next's; null: none.
  const uint8_t* after(int64_t i, int64_t at) const {
    if (i < seen.slots()) return slot(cache.key, i + at);
    return head + 1 < a.kv_heads ? cache.row(cache.key, head + 1, at, a.head_dim) : nullptr;
  }

  // body(first, count) for the runs of n slots from `from` on that lie side by side, as committed and staged ones each do.
  template <typename Body>
  void each_run(int64_t from, int64_t n, Body body) const {
    const int64_t split = std::max<int64_t>(0, std::min(n, seen.committed - from));
    if (split) body(0, int(split));
    if (split < n) body(split, int(n - split));
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

}  // namespace edgellm
