// The Walsh-Hadamard rotation that int8 keys are held in (QuaRot, arXiv 2404.00456): y = H x / sqrt(n), H_2n = [[H_n, H_n],
// [H_n, -H_n]], over runs of n numbers, the largest power of two that divides the head.
//
// One scale a key must reach its largest input. Where a bias makes a few inputs of every key a hundred times larger than
// the others (Qwen2.5), those are left with a few codes; H spreads them over all inputs. It is orthogonal: queries that
// pass through it too meet such keys in the same products, and it is its own inverse.
#pragma once
#include <cmath>
#include <cstdint>

namespace edgellm {

inline void hadamard(float* x, int64_t dim) {
  const int64_t n = dim & -dim;
  for (int64_t half = 1; half < n; half *= 2)
    for (int64_t from = 0; from < dim; from += 2 * half)
      for (int64_t i = from; i < from + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
      }
  const float scale = 1 / std::sqrt(float(n));
  for (int64_t i = 0; i < dim; ++i) x[i] *= scale;
}

}  // namespace edgellm
