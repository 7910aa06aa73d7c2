// PrunedKVAttention: commit the last run's accepted tokens, stage these, attend over what is kept (attend.cc).
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/isa.h"

namespace edgellm {
namespace {

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

void prefetch_slots(const Attention& a, const Control& control, const KVCache& cache) {
  if (control.budget < 1 || control.budget >= cache.capacity) return;
  for (int64_t head = 0; head < a.kv_heads; ++head)
    for (const int64_t slot : {control.budget, std::max<int64_t>(0, std::min(control.committed, control.budget - 1))}) {
      const int64_t at = head * cache.capacity + slot;
      __builtin_prefetch(cache.position + at, 1);
      for (const uint16_t* buffer : {cache.key, cache.value})
        for (int64_t i = 0; i < a.head_dim; i += 32) __builtin_prefetch(buffer + at * a.head_dim + i, 1);
    }
}

const char* commit_and_stage(const Attention& a, const Control& control, const Tokens& tokens, const KVCache& cache,
                             Seen& seen, const Pool& pool) {
  if (const char* why = problem(a, control, tokens.half, tokens.steps, cache)) return why;
  const Isa& isa = edgellm::isa();
  const int64_t dim = a.head_dim, budget = control.budget;
  seen = {std::min(budget, control.committed + control.accepted), budget, tokens.steps};

  auto one = [&](size_t task) {
    const int64_t head = int64_t(task);
    for (int64_t i = 0, count = control.committed; i < control.accepted; ++i, count = std::min(count + 1, budget))
      copy_slot(cache, head, budget + i, slot_for(cache.position + head * cache.capacity, count, control), dim);
    static thread_local std::vector<float> turned;
    turned.resize(size_t(dim));
    for (int64_t t = 0; t < tokens.steps; ++t) {
      const int64_t slot = head * cache.capacity + budget + t;
      turn(a, tokens, t, head_of(a, tokens, t, a.heads + head), tokens.k_norm, turned.data());
      isa.to_half(turned.data(), cache.key + slot * dim, int(dim));
      isa.to_half(head_of(a, tokens, t, a.heads + a.kv_heads + head), cache.value + slot * dim, int(dim));
      cache.position[slot] = int32_t(tokens.positions[t]);
    }
  };
  if (tokens.steps == 1 && control.accepted <= 1)  // less work than waking a thread
    for (int64_t head = 0; head < a.kv_heads; ++head) one(size_t(head));
  else
    parallel(pool, size_t(a.kv_heads), one);
  return nullptr;
}

const char* pruned_kv_attention(const Attention& a, const Control& control, const Tokens& tokens, KVCache cache,
                                float* y, const Pool& pool) {
  Seen seen{};
  if (const char* why = commit_and_stage(a, control, tokens, cache, seen, pool)) return why;
  attend(a, cache, seen, tokens, y, pool);
  return nullptr;
}

}  // namespace edgellm
