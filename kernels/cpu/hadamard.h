// The Walsh-Hadamard rotation that int8 keys are held in (QuaRot, arXiv 2404.00456): y = H x / sqrt(n), H_2n = [[H_n, H_n],
// [H_n, -H_n]], over runs of n numbers, the largest power of two that divides the head.
//
// One scale a key must reach its largest input, and where a few are many times larger than the others, these are left
// with few codes; H spreads the large ones over all. It is orthogonal: queries that pass through it too meet such keys
// in the same products.
#pragma once
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace edgellm {

// Every step pairs the same places (Pease, 1968): vectors take them without shuffling within a register.
inline void hadamard(float* x, int64_t dim) {
  const int64_t n = dim & -dim;
  static thread_local std::vector<float> other;
  other.resize(size_t(n));
  const float scale = 1 / std::sqrt(float(n));
  for (float* run = x; run < x + dim; run += n) {
    float *from = run, *to = other.data();
    for (int64_t step = 1; step < n; step *= 2, std::swap(from, to))
      for (int64_t i = 0; i < n / 2; ++i) {
        const float a = from[i], b = from[n / 2 + i];
        to[2 * i] = a + b, to[2 * i + 1] = a - b;
      }
    for (int64_t i = 0; i < n; ++i) run[i] = from[i] * scale;
  }
}

}  // namespace edgellm
