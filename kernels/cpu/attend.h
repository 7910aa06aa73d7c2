// Attention of this run's queries over the kept slots, once keys and values are staged.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/cpu/operators.h"
#include "kernels/cpu/rms_norm.h"

namespace edgellm {

// Slots a run attends to, in order: committed ones [0, committed), then its own [budget, budget + steps).
struct Seen {
  int64_t committed, budget, steps;
  int64_t slots() const { return committed + steps; }
  int64_t slot(int64_t i) const { return i < committed ? i : budget + i - committed; }
};

// Why this run cannot be done, or null; then commit the last run's accepted tokens and stage these.
const char* commit_and_stage(const Attention& a, const Control& control, const Tokens& tokens, const KVCache& cache,
                             Seen& seen, const Pool& pool);

// Fetches what commit_and_stage will touch for one token, while other work is under way: each is a miss of its own.
void prefetch_slots(const Attention& a, const Control& control, const KVCache& cache);

// y [steps, heads * head_dim] = softmax(scale * q . key) value; what queries paid is added to the cache's scores where
// control asks for them (score.h).
void attend(const Attention& a, const Control& control, const KVCache& cache, const Seen& seen, const Tokens& tokens,
            float* y, const Pool& pool);

// Head `head` of token t's query, key and value heads, [head_dim] of its qkv.
inline const float* head_of(const Attention& a, const Tokens& tokens, int64_t t, int64_t head) {
  return tokens.qkv + (t * (a.heads + 2 * a.kv_heads) + head) * a.head_dim;
}

// A head of token t, x [head_dim], normed (norm may be null) and rotated: rotary embedding in rotate-half order;
// dimensions from 2 * half on pass.
inline void turn(const Attention& a, const Tokens& tokens, int64_t t, const float* x, const float* norm, float* y) {
  const float *cos = tokens.cos + t * tokens.half, *sin = tokens.sin + t * tokens.half;
  const int64_t half = tokens.half, head_dim = a.head_dim;
  static thread_local std::vector<float> normed;
  if (norm) {
    normed.resize(size_t(head_dim));
    rms_norm(x, norm, tokens.epsilon, head_dim, normed.data());
    x = normed.data();
  }
  for (int64_t i = 0; i < half; ++i) {
    y[i] = x[i] * cos[i] - x[half + i] * sin[i];
    y[half + i] = x[half + i] * cos[i] + x[i] * sin[i];
  }
  std::copy(x + 2 * half, x + head_dim, y + 2 * half);
}

}  // namespace edgellm
