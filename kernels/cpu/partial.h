// Softmax-weighted sums that grow as slots come, and merge: FlashAttention's running maximum.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace edgellm {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Running softmax of `rows` rows over what a segment, or several merged ones, saw.
struct Partial {
  std::vector<float> most, total, y;

  Partial(int64_t rows, int64_t dim) { clear(rows, dim); }

  void clear(int64_t rows, int64_t dim) {
    most.assign(size_t(rows), kNever);
    total.assign(size_t(rows), 0);
    y.assign(size_t(rows * dim), 0);
  }

  // This row's sums become relative to a larger maximum.
  void raise(int64_t row, int64_t dim, float now) {
    if (now == most[size_t(row)] || now == kNever) return;
    const float by = most[size_t(row)] == kNever ? 0 : std::exp(most[size_t(row)] - now);
    most[size_t(row)] = now;
    total[size_t(row)] *= by;
    for (int64_t i = 0; i < dim; ++i) y[size_t(row * dim + i)] *= by;
  }

  void merge(Partial& other, int64_t dim) {
    for (size_t row = 0; row < most.size(); ++row) {
      const float now = std::max(most[row], other.most[row]);
      raise(int64_t(row), dim, now);
      other.raise(int64_t(row), dim, now);
      total[row] += other.total[row];
      for (size_t i = row * size_t(dim); i < (row + 1) * size_t(dim); ++i) y[i] += other.y[i];
    }
  }
};

}  // namespace edgellm
