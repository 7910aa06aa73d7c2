// A row of logits in blocks, which stay in the first-level cache from one loop over them to the next.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/sample.h"

namespace edgellm {

constexpr int64_t kBlock = 256;

// The largest of n, or NaN if one is NaN (Isa::largest does not say). The compiler's own vectors: every processor's
// baseline reads as fast as memory gives, and loops with a choice in them it does not turn into vectors by itself.
inline float largest(const float* x, int n) {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  Floats most[4];
  Ints odd = {};
  for (Floats& one : most) one = Floats{} - INFINITY;
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 4; ++j) {
      Floats y;
      std::memcpy(&y, x + i + 4 * j, sizeof y);
      most[j] = most[j] < y ? y : most[j];
      odd |= y != y;
    }
  for (const Floats& one : most) most[0] = most[0] < one ? one : most[0];
  float top = -INFINITY;
  bool nan = false;
  for (int lane = 0; lane < 4; ++lane) top = std::max(top, most[0][lane]), nan |= odd[lane] != 0;
  for (; i < n; ++i) top = std::max(top, x[i]), nan |= std::isnan(x[i]);
  return nan ? NAN : top;
}

// e = exp(d) over a block, in float32, and their sum in float64. Where the largest d of a row is 0, the sum over the row
// is within kLoss of the exact one: d is rounded by at most 5e-7 where weight is to be found, Isa::exponentials by 2e-7.
constexpr double kLoss = 2e-6;
inline double exponentials(const float* d, float* e) {
  std::copy(d, d + kBlock, e);
  isa().exponentials(e, kBlock, 0);
  double part[8] = {};
  for (int i = 0; i < kBlock; i += 8)
    for (int j = 0; j < 8; ++j) part[j] += double(e[i + j]);
  double sum = 0;
  for (const double one : part) sum += one;
  return sum;
}

// Logits after the repetition penalty, in float64: the row itself stays as it is.
struct Scores {
  const float* logits;
  int64_t size;
  Seen seen;
  double penalty;

  int64_t blocks() const { return (size + kBlock - 1) / kBlock; }
  int count(int64_t b) const { return int(std::min(kBlock, size - b * kBlock)); }
  double penalized(double score) const { return score > 0 ? score / penalty : score * penalty; }

  // Calls each(place in the block, score) for the tokens of block b that were seen.
  template <typename Each>
  void for_seen(int64_t b, Each each) const {
    const int64_t begin = b * kBlock, *last = seen.ids + seen.count;
    for (auto id = std::lower_bound(seen.ids, last, begin); id < last && *id < begin + count(b); ++id)
      each(*id - begin, penalized(double(logits[*id])));
  }

  void load(int64_t b, double* score) const {
    for (int i = 0; i < count(b); ++i) score[i] = double(logits[b * kBlock + i]);
    for_seen(b, [&](int64_t i, double s) { score[i] = s; });
  }

  // The block's largest score; NaN if one is.
  double most(int64_t b) const {
    const float* x = logits + b * kBlock;
    double top = double(largest(x, count(b)));
    if (std::isnan(top)) return top;
    float rest[kBlock];  // the block without the tokens seen
    bool any = false;
    double most_seen = -INFINITY;
    for_seen(b, [&](int64_t i, double s) {
      if (!any) std::copy(x, x + count(b), rest);
      any = true;
      rest[i] = -INFINITY;
      most_seen = std::max(most_seen, s);
    });
    return any ? std::max(most_seen, double(largest(rest, count(b)))) : top;
  }
};

}  // namespace edgellm
