// Many rows times one unpacked group of 16 outputs.
//
//   acc[row][o] += w_scale[o] * x_scale[row] * sum_i weight[o, i] * x[row, i]  +  minimum[o] * sum_i x[row, i]
//
// Weights and activations are int16: a register of weights is two inputs of 16 outputs. 128 * kTop * 64 stays below
// 2^31.
#pragma once
#include <type_traits>

#include "kernels/cpu/avx512/vectors.h"

namespace edgellm::EDGELLM_AVX512 {

inline void add(__m512i& sum, __m512i a, __m512i x) {
#ifdef EDGELLM_VNNI
  sum = _mm512_dpwssd_epi32(sum, a, x);
#else
  sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, x));
#endif
}

// One group as int16, of each quad inputs 0 and 2 of 16 outputs, then 1 and 3.
inline void widen(const int8_t* weight, int quads, int16_t* wide) {
  for (int quad = 0; quad < quads; ++quad, weight += 4 * kPanel, wide += 4 * kPanel) {
    const __m512i w = load(weight);
    _mm512_store_si512(wide, _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8));
    _mm512_store_si512(wide + 2 * kPanel, _mm512_srai_epi16(w, 8));
  }
}

// For some rows at once: their sums stay in registers.
template <int kRows>
void accumulate_rows(const int16_t* wide, int quads, __m512 w_scale, const float* minimum, const int16_t* x,
                     const float* x_scale, const float* total, float* acc) {
  __m512i sum[kRows];
  unrolled<kRows>([&](auto row) { sum[row] = _mm512_setzero_si512(); });
  for (int quad = 0; quad < quads; ++quad, wide += 4 * kPanel, x += 4) {
    const __m512i even = _mm512_load_si512(wide), odd = _mm512_load_si512(wide + 2 * kPanel);
    unrolled<kRows>([&](auto row) {
      add(sum[row], even, four_bytes(x + row * kTile));
      add(sum[row], odd, four_bytes(x + row * kTile + 2));
      keep(sum[row]);
    });
  }
  unrolled<kRows>([&](auto row) {
    float* to = acc + row * kPanel;
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[row]), w_scale);
    __m512 now = _mm512_fmadd_ps(scaled, _mm512_set1_ps(x_scale[row]), _mm512_loadu_ps(to));
    if (minimum) now = _mm512_fmadd_ps(_mm512_loadu_ps(minimum), _mm512_set1_ps(total[row]), now);
    _mm512_storeu_ps(to, now);
  });
}

inline void accumulate(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                       const float* x_scale, const float* total, int rows, float* acc) {
  alignas(64) int16_t wide[kPanel * kTile];
  widen(weight, quads, wide);
  const __m512 scale = _mm512_loadu_ps(w_scale);
  auto some = [&](auto count) {
    constexpr int kRows = count();
    for (; rows >= kRows; rows -= kRows, x += kRows * kTile, x_scale += kRows, total += kRows, acc += kRows * kPanel)
      accumulate_rows<kRows>(wide, quads, scale, minimum, x, x_scale, total, acc);
  };
  some(std::integral_constant<int, 16>());
  some(std::integral_constant<int, 8>());
  some(std::integral_constant<int, 4>());
  some(std::integral_constant<int, 2>());
  some(std::integral_constant<int, 1>());
}

}  // namespace edgellm::EDGELLM_AVX512
