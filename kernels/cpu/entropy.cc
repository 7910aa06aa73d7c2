// How sure a row of logits is.
#include "kernels/cpu/logits.h"

namespace edgellm {

// d = x - max x, S = sum exp(d):  ln sum exp(x) = max x + ln S;  entropy = ln S - sum(exp(d) d) / S
Uncertainty uncertainty(const float* logits, int64_t size) {
  const float top = largest(logits, int(size));
  if (!std::isfinite(top)) return {NAN, NAN, NAN};
  double sum = 0, product = 0;
  alignas(64) float d[kBlock], e[kBlock];
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int n = int(std::min(kBlock, size - begin));
    for (int i = 0; i < n; ++i) d[i] = logits[begin + i] - top;
    std::fill(d + n, d + kBlock, -INFINITY);
    sum += exponentials(d, e);
    for (float& one : d) one = std::max(one, -88.0f);  // e is nothing there, and times -inf it would be NaN
    float dot;
    isa().scores(e, 1, d, 1, kBlock, &dot, 1);
    product += double(dot);
  }
  return {std::log(sum) - product / sum, double(top) + std::log(sum), 1 / sum};
}

}  // namespace edgellm

extern "C" __attribute__((visibility("default"))) void edgellm_uncertainty(const float* logits, int64_t size,
                                                                           edgellm::Uncertainty* found) {
  *found = edgellm::uncertainty(logits, size);
}
