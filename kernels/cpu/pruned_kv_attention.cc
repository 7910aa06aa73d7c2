// PrunedKVAttention: commit the last run's accepted tokens, stage these, attend over what is kept.
//
//   y[t, h] = sum_s softmax_s( scale * q[t, h] . key[h / group, s] ) value[h / group, s]
//   s over slots [0, committed) and [budget, budget + t], in a sliding layer those of the last `window` positions
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/operators.h"

namespace edgellm {
namespace {

constexpr int64_t kRowBlock = 8;  // query rows a task

// The committed slot a token goes to: the next free one, else the oldest that is no sink (StreamingLLM).
int64_t slot_for(const int32_t* position, int64_t committed, const Control& control) {
  if (committed < control.budget) return committed;
  int64_t slot = 0;
  int32_t oldest = std::numeric_limits<int32_t>::max();
  for (int64_t s = 0; s < control.budget; ++s)
    if (position[s] >= control.sinks && position[s] < oldest) oldest = position[s], slot = s;
  return slot;
}

void copy_slot(const KVCache& cache, int64_t head, int64_t from, int64_t to, int64_t head_dim) {
  const size_t bytes = size_t(head_dim) * 2;
  for (uint16_t* buffer : {cache.key, cache.value})
    std::memcpy(buffer + (head * cache.capacity + to) * head_dim, buffer + (head * cache.capacity + from) * head_dim,
                bytes);
  cache.position[head * cache.capacity + to] = cache.position[head * cache.capacity + from];
}

void rotate(const float* x, const float* cos, const float* sin, int64_t half, int64_t head_dim, float* y) {
  for (int64_t i = 0; i < half; ++i) {
    y[i] = x[i] * cos[i] - x[half + i] * sin[i];
    y[half + i] = x[half + i] * cos[i] + x[i] * sin[i];
  }
  std::copy(x + 2 * half, x + head_dim, y + 2 * half);
}

const char* problem(const Attention& a, const Control& c, int64_t half, int64_t steps, const KVCache& cache) {
  if (a.kv_heads < 1 || a.heads % a.kv_heads || half < 0 || 2 * half > a.head_dim) return "heads do not fit";
  if (a.window < 0 || !(a.softcap >= 0)) return "window or softcap below 0";
  if (c.budget < 1 || c.committed < 0 || c.committed > c.budget || c.accepted < 0) return "control out of range";
  if (c.budget + std::max(steps, c.accepted) > cache.capacity) return "more tokens than the staging area holds";
  if (c.policy != kFull && c.policy != kWindow) return "unknown policy";
  if (c.policy == kFull && c.committed + c.accepted > c.budget) return "the cache is full";
  if (c.policy == kWindow && c.sinks >= c.budget) return "sinks fill the whole budget";
  return nullptr;
}

}  // namespace

const char* pruned_kv_attention(const Attention& a, const Control& control, const float* q, const float* k,
                                const float* v, const float* cos, const float* sin, int64_t half,
                                const int64_t* positions, int64_t steps, KVCache cache, float* y, const Pool& pool) {
  if (const char* why = problem(a, control, half, steps, cache)) return why;
  const Isa& isa = edgellm::isa();
  const int64_t dim = a.head_dim, group = a.heads / a.kv_heads, budget = control.budget;
  const int64_t committed = std::min(budget, control.committed + control.accepted);

  auto commit_and_stage = [&](size_t task) {
    const int64_t head = int64_t(task);
    for (int64_t i = 0, count = control.committed; i < control.accepted; ++i, count = std::min(count + 1, budget))
      copy_slot(cache, head, budget + i, slot_for(cache.position + head * cache.capacity, count, control), dim);
    std::vector<float> rotated(static_cast<size_t>(dim));
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t slot = head * cache.capacity + budget + t, row = (t * a.kv_heads + head) * dim;
      rotate(k + row, cos + t * half, sin + t * half, half, dim, rotated.data());
      isa.to_half(rotated.data(), cache.key + slot * dim, int(dim));
      isa.to_half(v + row, cache.value + slot * dim, int(dim));
      cache.position[slot] = int32_t(positions[t]);
    }
  };
  parallel(pool, size_t(a.kv_heads), commit_and_stage);

  const int64_t blocks = (steps + kRowBlock - 1) / kRowBlock;
  auto attend = [&](size_t task) {
    const int64_t head = int64_t(task) / blocks, first = int64_t(task) % blocks * kRowBlock;
    const int64_t base = head / group * cache.capacity;
    std::vector<float> rotated(static_cast<size_t>(dim)), weight(size_t(committed + steps));
    std::vector<int64_t> near;  // the slots that token t sees
    near.reserve(weight.size());
    for (int64_t t = first; t < std::min(steps, first + kRowBlock); ++t) {
      rotate(q + (t * a.heads + head) * dim, cos + t * half, sin + t * half, half, dim, rotated.data());
      const int64_t seen = committed + t + 1;
      auto slot = [&](int64_t s) { return s < committed ? s : budget + s - committed; };
      float most = -std::numeric_limits<float>::infinity(), total = 0;
      const int64_t oldest = a.window ? positions[t] - a.window + 1 : std::numeric_limits<int64_t>::min();
      near.clear();
      for (int64_t s = 0; s < seen; ++s)
        if (cache.position[base + slot(s)] >= oldest) near.push_back(base + slot(s));
      for (size_t i = 0; i < near.size(); ++i) {
        float logit = a.scale * isa.dot_half(rotated.data(), cache.key + near[i] * dim, int(dim));
        if (a.softcap > 0) logit = a.softcap * std::tanh(logit / a.softcap);
        weight[i] = logit;
        most = std::max(most, logit);
      }
      float* out = y + (t * a.heads + head) * dim;
      std::fill(out, out + dim, 0.0f);
      for (size_t i = 0; i < near.size(); ++i) total += weight[i] = std::exp(weight[i] - most);
      for (size_t i = 0; i < near.size(); ++i)
        isa.add_half(weight[i] / total, cache.value + near[i] * dim, out, int(dim));
    }
  };
  parallel(pool, size_t(a.heads * blocks), attend);
  return nullptr;
}

}  // namespace edgellm
