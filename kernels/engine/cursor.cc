#include "kernels/engine/cursor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace edgellm {

Cursor::Cursor(const KVPolicy& policy, int64_t layers) : policy_(policy), own_budgets_(policy.layer_budgets(layers)) {
  reset();
}

void Cursor::control(int64_t counted, std::vector<int64_t>& rows) const {
  rows.resize(committed.size() * size_t(kControl));
  for (size_t layer = 0; layer < committed.size(); ++layer) {
    Control row = policy_.control(own_budgets_[layer]);
    row.committed = committed[layer], row.accepted = staged, row.staged = places[layer], row.budget = budgets[layer];
    if (policy_.scored()) row.counted = counted, row.anchor = anchor;
    std::memcpy(&rows[layer * size_t(kControl)], &row, sizeof row);
  }
}

void Cursor::advance(int64_t tokens) {
  for (size_t layer = 0; layer < committed.size(); ++layer)
    committed[layer] = std::min(budgets[layer], committed[layer] + staged);
  places = budgets;
  staged = tokens;
  fed += tokens;
}

int64_t Cursor::cut_back(int64_t tokens) {
  const int64_t older = fed - staged;  // committed, or evicted since
  if (tokens < 0 || tokens >= fed) return fed;
  if (tokens < older && *std::min_element(committed.begin(), committed.end()) < older) {
    reset();
  } else if (tokens < older) {
    std::fill(committed.begin(), committed.end(), tokens);
    staged = 0, fed = tokens;
  } else {
    staged = tokens - older, fed = tokens;
  }
  return fed;
}

void Cursor::reset() {
  committed.assign(own_budgets_.size(), 0);
  staged = fed = anchor = 0;
  budgets = places = own_budgets_;
}

int64_t Cursor::evicted() const {
  const int64_t held = std::accumulate(committed.begin(), committed.end(), int64_t(0));
  const int64_t layers = int64_t(committed.size());
  return std::llrint(double((fed - staged) * layers - held) / double(layers));
}

}  // namespace edgellm
