// What queries paid each token: column sums of attention, the scores that eviction goes by (attention_reference.py, count).
//
//   score[s] = forget^counted * score[s] + sum_t forget^(counted - 1 - t) * paid[t, s]
//   paid[t, s] = sum | mean | max over the group's query heads h of softmax_s(t, h)
//
// over this run's counted tokens t. Attention in blocks knows a row's maximum and total only at its end, so a task keeps
// its weights until then: some rows times the slots seen, which stays in cache.
#pragma once
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/partial.h"

namespace edgellm {

// How this run's tokens count, from control.
class Votes {
 public:
  // None where nothing counts.
  static std::optional<Votes> of(const Control& control, const int64_t* positions, int64_t group);

  int64_t sums() const { return c_.queries ? 2 : 1; }  // of windows
  bool max() const { return c_.heads == kMax; }
  float share() const { return share_; }  // of a head's attention in its group's
  // What token t's attention is worth at the end of the run; 0 where it does not count.
  float weight(int64_t t) const;
  bool any(int64_t first, int64_t tokens) const;  // whether any of these counts
  // 1 where token t belongs to the window before the open one.
  int64_t sum(int64_t t) const { return c_.queries && window(positions_[t]) < open_; }
  // Scores of a KV head from what they were and sums [sums(), slots] over this run.
  void settle(const KVCache& cache, const Seen& seen, int64_t head, const float* sums) const;
  // The same, the sums being those of `tasks` added up in order; tasks without any are empty.
  void settle(const KVCache& cache, const Seen& seen, int64_t head, std::vector<float>* sums, int64_t tasks) const;

 private:
  Votes(const Control& control, const int64_t* positions, int64_t group);

  // Windows end where position + 1 - anchor divides by `queries`: the number of the one that a position lies in.
  int64_t window(int64_t position) const { return (position - c_.anchor + c_.queries) / c_.queries; }

  Control c_;
  const int64_t* positions_;
  float share_;
  double stays_;
  int64_t open_;  // the window that the next token will lie in
};

// What the rows of a task pay slots [begin, end): row = token, query head, as in attend.cc.
class Paid {
 public:
  void clear(int64_t rows, int64_t begin, int64_t end) {
    begin_ = begin, slots_ = std::max<int64_t>(0, end - begin);
    if (paid_.size() < size_t(rows * slots_)) paid_.resize(size_t(rows * slots_));
    pieces_.clear();
  }

  // Weights [n] of a row from slot `from` on, relative to the maximum `most`.
  void keep(int64_t row, int64_t from, int64_t n, const float* weight, float most) {
    std::copy(weight, weight + n, at(row, from));
    pieces_.push_back({row, from, n, most});
  }

  // Adds the votes of rows [token][width], tokens from `first` on, to sums [votes.sums(), stride], given each row's final
  // maximum and total.
  void add(const Votes& votes, int64_t first, int64_t width, const Partial& whole, float* sums, int64_t stride);

 private:
  struct Piece {
    int64_t row, from, n;
    float most;
  };
  float* at(int64_t row, int64_t slot) { return &paid_[size_t(row * slots_ + slot - begin_)]; }

  int64_t begin_ = 0, slots_ = 0;
  std::vector<float> paid_;
  std::vector<Piece> pieces_;
};

}  // namespace edgellm
