// Many rows times one unpacked group of 16 outputs, with AVX2.
//
//   acc[row][o] += w_scale[o] * x_scale[row] * sum_i weight[o, i] * x[row, i]  +  minimum[o] * sum_i x[row, i]
#pragma once
#include <algorithm>

#include "kernels/cpu/avx2/vectors.h"

namespace edgellm::EDGELLM_AVX2 {

// One group's weights as int16, of each quad [inputs 0 and 2, outputs 0-7][1 and 3, 0-7][0 and 2, 8-15][1 and 3, 8-15].
inline void widen(const int8_t* weight, int quads, int16_t* wide) {
  for (int i = 0; i < 2 * quads; ++i, weight += 32, wide += 32) {
    const __m256i w = load(weight);
    _mm256_store_si256((__m256i*)wide, _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    _mm256_store_si256((__m256i*)(wide + 16), _mm256_srai_epi16(w, 8));
  }
}

// For some rows at once: their sums and a quad's weights fit sixteen registers. vpmaddwd: int16 pairs into an int32 an
// output. 128 * kTop * 64 stays below 2^31.
template <int kRows>
void accumulate_rows(const int16_t* wide, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                     const float* x_scale, const float* total, float* acc) {
  __m256i sum[kRows][2];
  unrolled<kRows>([&](auto row) { sum[row][0] = sum[row][1] = _mm256_setzero_si256(); });
  for (int quad = 0; quad < quads; ++quad, wide += 4 * kPanel, x += 4) {
    const __m256i v0 = load(wide), v1 = load(wide + 16), w0 = load(wide + 32), w1 = load(wide + 48);
    unrolled<kRows>([&](auto row) {
      const __m256i first = pair(x + row * kTile), second = pair(x + row * kTile + 2);
      add(sum[row][0], v0, first);
      add(sum[row][1], w0, first);
      add(sum[row][0], v1, second);
      add(sum[row][1], w1, second);
      keep(sum[row][0]);
      keep(sum[row][1]);
    });
  }
  auto finish = [&](__m256i whole, int row, int half) {
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), _mm256_loadu_ps(w_scale + 8 * half));
    float* to = acc + row * kPanel + 8 * half;
    __m256 now = _mm256_fmadd_ps(scaled, _mm256_set1_ps(x_scale[row]), _mm256_loadu_ps(to));
    if (minimum) now = _mm256_fmadd_ps(_mm256_loadu_ps(minimum + 8 * half), _mm256_set1_ps(total[row]), now);
    _mm256_storeu_ps(to, now);
  };
  unrolled<kRows>([&](auto row) { finish(sum[row][0], row, 0), finish(sum[row][1], row, 1); });
}

inline void accumulate(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                       const float* x_scale, const float* total, int rows, float* acc) {
  constexpr decltype(&accumulate_rows<1>) kSome[] = {nullptr,            accumulate_rows<1>, accumulate_rows<2>,
                                                     accumulate_rows<3>, accumulate_rows<4>, accumulate_rows<5>};
  constexpr int kMost = 5;
  alignas(32) int16_t wide[kPanel * kTile];
  widen(weight, quads, wide);
  for (int row = 0; row < rows; row += kMost, x += kMost * kTile, acc += kMost * kPanel)
    kSome[std::min(kMost, rows - row)](wide, quads, w_scale, minimum, x, x_scale + row, total + row, acc);
}

}  // namespace edgellm::EDGELLM_AVX2
