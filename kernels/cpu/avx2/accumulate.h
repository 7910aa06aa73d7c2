// Many rows times one unpacked group of 16 outputs, with AVX2.
//
//   acc[row][o] += w_scale[o] * x_scale[row] * sum_i weight[o, i] * x[row, i]  +  minimum[o] * sum_i x[row, i]
#pragma once
#include <algorithm>
#include <utility>

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
// output. 128 * 32767 * 64 stays below 2^31.
template <size_t... kRow>
void accumulate_rows(std::index_sequence<kRow...>, const int16_t* wide, int quads, const float* w_scale,
                     const float* minimum, const int16_t* x, const float* x_scale, const float* total, float* acc) {
  __m256i low[] = {((void)kRow, _mm256_setzero_si256())...}, high[] = {((void)kRow, _mm256_setzero_si256())...};
  for (int quad = 0; quad < quads; ++quad, wide += 4 * kPanel, x += 4) {
    const __m256i v0 = load(wide), v1 = load(wide + 16), w0 = load(wide + 32), w1 = load(wide + 48);
    auto step = [&](__m256i& a, __m256i& b, const int16_t* inputs) {
      const __m256i first = pair(inputs), second = pair(inputs + 2);
      add(a, v0, first);
      add(b, w0, first);
      add(a, v1, second);
      add(b, w1, second);
      keep(a);
      keep(b);
    };
    (step(low[kRow], high[kRow], x + kRow * kTile), ...);
  }
  auto finish = [&](__m256i sum, int row, int half) {
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(w_scale + 8 * half));
    float* to = acc + row * kPanel + 8 * half;
    __m256 now = _mm256_fmadd_ps(scaled, _mm256_set1_ps(x_scale[row]), _mm256_loadu_ps(to));
    if (minimum) now = _mm256_fmadd_ps(_mm256_loadu_ps(minimum + 8 * half), _mm256_set1_ps(total[row]), now);
    _mm256_storeu_ps(to, now);
  };
  ((finish(low[kRow], kRow, 0), finish(high[kRow], kRow, 1)), ...);
}

template <size_t kRows>
void accumulate_some(const int16_t* wide, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                     const float* x_scale, const float* total, float* acc) {
  accumulate_rows(std::make_index_sequence<kRows>(), wide, quads, w_scale, minimum, x, x_scale, total, acc);
}

inline void accumulate(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                       const float* x_scale, const float* total, int rows, float* acc) {
  constexpr decltype(&accumulate_some<1>) kSome[] = {nullptr,            accumulate_some<1>, accumulate_some<2>,
                                                     accumulate_some<3>, accumulate_some<4>, accumulate_some<5>};
  constexpr int kMost = 5;
  alignas(32) int16_t wide[kPanel * kTile];
  widen(weight, quads, wide);
  for (int row = 0; row < rows; row += kMost, x += kMost * kTile, acc += kMost * kPanel)
    kSome[std::min(kMost, rows - row)](wide, quads, w_scale, minimum, x, x_scale + row, total + row, acc);
}

}  // namespace edgellm::EDGELLM_AVX2
