// Which tokens stay, and where: the last run's accepted ones join the committed ones (attention_reference.py, commit).
#pragma once
#include "kernels/cpu/operators.h"

namespace edgellm {

// Why it cannot be done, or null. Says nothing of a control that pruned_kv_attention.cc refuses by itself.
const char* commit_problem(const Control& control);

// Tokens that are committed afterwards.
inline int64_t kept(const Control& c) { return std::min(c.budget, c.committed + c.accepted); }

// Commits one KV head's tokens. Where more than `budget` came together,
//
//   importance = position (window)  |  (attention + older) * norm (score)
//   gone = the least important of those that are neither sinks nor recent, the oldest of equals
//
// and what stays moves into the places of what goes: a slot is written at most once, and only where a token comes to it.
void commit(const KVCache& cache, const Control& control, int64_t head, int64_t head_dim);

}  // namespace edgellm
