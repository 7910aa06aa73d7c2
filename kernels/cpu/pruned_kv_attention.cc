// PrunedKVAttention: commit the last run's accepted tokens (commit.cc), stage these, attend over what is kept (attend.cc)
// and score it (score.cc).
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/commit.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kv_row.h"

namespace edgellm {
namespace {

const char* problem(const Attention& a, const Control& c, const Tokens& tokens, const KVCache& cache) {
  const int64_t half = tokens.half, steps = tokens.steps;
  if (a.kv_heads < 1 || a.heads % a.kv_heads || half < 0 || 2 * half > a.head_dim) return "heads do not fit";
  if (tokens.k_shift && a.softcap > 0) return "keys are shifted, and a soft cap would not drop that";
  if (a.window < 0 || !(a.softcap >= 0)) return "window or softcap below 0";
  const int64_t least = std::min({c.committed, c.accepted, c.sinks, c.recent, c.counted, c.queries, c.anchor});
  if (c.budget < 1 || least < 0 || c.staged < c.committed || c.staged + c.accepted > cache.capacity)
    return "control out of range";
  if (c.counted > steps || (c.queries && c.anchor >= c.queries) || c.forget < 0 || c.forget > kMillion || c.heads < kSum ||
      c.heads > kMax)
    return "control out of range";
  if (c.budget + steps > cache.capacity) return "more tokens than the staging area holds";
  if (c.policy != kFull && c.policy != kWindow && c.policy != kScore) return "unknown policy";
  if (c.planes() > cache.planes) return "the score buffer has too few planes";
  return commit_problem(c);
}

// A token that was just staged: nothing paid it yet; its value's l1 norm, as it is stored.
void start_score(const KVCache& cache, int64_t head, int64_t slot, int64_t dim, const Isa& isa) {
  float* score = cache.scores(head, slot);
  std::fill(score, score + cache.planes, 0.0f);
  if (cache.planes <= kNorm) return;
  static thread_local std::vector<float> value;
  value.resize(size_t(dim));
  load_row(cache, cache.row(cache.value, head, slot, dim), dim, value.data(), isa);
  for (const float x : value) score[kNorm] += std::fabs(x);
}

}  // namespace

void prefetch_slots(const Attention& a, const Control& control, const KVCache& cache) {
  if (control.budget < 1 || control.budget >= cache.capacity) return;
  for (int64_t head = 0; head < a.kv_heads; ++head)
    for (const int64_t slot : {control.budget, std::max<int64_t>(0, std::min(control.committed, control.budget - 1))}) {
      __builtin_prefetch(cache.position + head * cache.capacity + slot, 1);
      for (void* buffer : {cache.key, cache.value})
        for (int64_t i = 0; i < cache.row_bytes(a.head_dim); i += 64)
          __builtin_prefetch(cache.row(buffer, head, slot, a.head_dim) + i, 1);
    }
}

const char* commit_and_stage(const Attention& a, const Control& control, const Tokens& tokens, const KVCache& cache,
                             Seen& seen, const Pool& pool) {
  if (const char* why = problem(a, control, tokens, cache)) return why;
  const Isa& isa = edgellm::isa();
  const int64_t dim = a.head_dim, budget = control.budget;
  seen = {kept(control), budget, tokens.steps};

  auto one = [&](size_t task) {
    const int64_t head = int64_t(task);
    commit(cache, control, head, dim);
    static thread_local std::vector<float> turned;
    turned.resize(size_t(dim));
    for (int64_t t = 0; t < tokens.steps; ++t) {
      turn(a, tokens, t, head_of(a, tokens, t, a.heads + head), tokens.k_norm, turned.data());
      for (int64_t i = 0; tokens.k_shift && i < dim; ++i) turned[size_t(i)] -= tokens.k_shift[head * dim + i];
      if (cache.int8) hadamard(turned.data(), dim);
      store_row(cache, turned.data(), dim, cache.row(cache.key, head, budget + t, dim), isa);
      const float* value = head_of(a, tokens, t, a.heads + a.kv_heads + head);
      store_row(cache, value, dim, cache.row(cache.value, head, budget + t, dim), isa);
      cache.position[head * cache.capacity + budget + t] = int32_t(tokens.positions[t]);
      start_score(cache, head, budget + t, dim, isa);
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
  attend(a, control, cache, seen, tokens, y, pool);
  return nullptr;
}

}  // namespace edgellm
