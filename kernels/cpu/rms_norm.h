// y[i] = x[i] / sqrt( mean(x^2) + epsilon ) * weight[i]   (arXiv 1910.07467)
#pragma once
#include <cmath>
#include <cstdint>

namespace edgellm {

inline void rms_norm(const float* x, const float* weight, float epsilon, int64_t n, float* y) {
  constexpr int kLanes = 16;  // sums side by side, so that compilers may use vectors
  float squares[kLanes] = {}, total = 0;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) squares[lane] += x[i + lane] * x[i + lane];
  for (; i < n; ++i) total += x[i] * x[i];
  for (float lane : squares) total += lane;
  const float by = 1 / std::sqrt(total / float(n) + epsilon);
  for (i = 0; i < n; ++i) y[i] = x[i] * by * weight[i];
}

}  // namespace edgellm
