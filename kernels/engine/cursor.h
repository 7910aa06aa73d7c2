// How far the KV cache is filled, layer by layer: runtime/cursor.py, which explains the fields.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/engine/kv_policy.h"

namespace edgellm {

class Cursor {
 public:
  Cursor(const KVPolicy& policy, int64_t layers);

  // Written as the graph's input `control` [layers, kControl].
  void control(int64_t counted, std::vector<int64_t>& rows) const;
  // Notes a run of `tokens`: what was staged is committed now, and the run's own tokens are staged.
  void advance(int64_t tokens);
  // Forgets all but the first `tokens` of the sequence; returns how many stay: as many, or none after an eviction.
  int64_t cut_back(int64_t tokens);
  void reset();
  // Tokens that no slot holds any more: the mean over layers, rounded.
  int64_t evicted() const;

  const std::vector<int64_t>& own_budgets() const { return own_budgets_; }
  std::vector<int64_t> committed, budgets, places;
  int64_t staged = 0, fed = 0, anchor = 0;

 private:
  KVPolicy policy_;
  std::vector<int64_t> own_budgets_;
};

}  // namespace edgellm
