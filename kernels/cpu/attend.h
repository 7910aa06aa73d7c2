// Attention of this run's queries over the kept slots, once keys and values are staged.
#pragma once
#include <algorithm>

#include "kernels/cpu/operators.h"

namespace edgellm {

// Slots a run attends to, in order: committed ones [0, committed), then its own [budget, budget + steps).
struct Seen {
  int64_t committed, budget, steps;
  int64_t slot(int64_t i) const { return i < committed ? i : budget + i - committed; }
};

// q [steps, heads * head_dim], not rotated yet; cos, sin [steps, half]; positions [steps].
struct Queries {
  const float *q, *cos, *sin;
  int64_t half;
  const int64_t* positions;
};

// y [steps, heads * head_dim] = softmax(scale * q . key) value
void attend(const Attention& a, const KVCache& cache, const Seen& seen, const Queries& queries, float* y,
            const Pool& pool);

// Rotary embedding of one head, rotate-half order; dimensions from 2 * half on pass.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t half, int64_t head_dim, float* y) {
  for (int64_t i = 0; i < half; ++i) {
    y[i] = x[i] * cos[i] - x[half + i] * sin[i];
    y[half + i] = x[half + i] * cos[i] + x[i] * sin[i];
  }
  std::copy(x + 2 * half, x + head_dim, y + 2 * half);
}

}  // namespace edgellm
