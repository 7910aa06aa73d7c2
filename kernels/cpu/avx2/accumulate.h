// Many rows times one unpacked group of 16 outputs, with AVX2.
//
//   acc[row][o] += w_scale[o] * x_scale[row] * sum_i weight[o, i] * x[row, i]  +  minimum[o] * sum_i x[row, i]
#pragma once
#include <type_traits>

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

// sum += a * x, now: compilers otherwise gather the additions of a loop and spill what waits for them.
EDGELLM_INLINED inline void add_now(__m256i& sum, __m256i a, __m256i x) {
  add(sum, a, x);
  keep(sum);
}

// For some rows at once: their sums, a quad's weights and, later, the scales fit sixteen registers. All quads are written
// out and the first of them starts the sums: with groups of 32, what surrounds a loop costs as much as a quad. vpmaddwd:
// int16 pairs into an int32 an output. 128 * kTop * 64 stays below 2^31.
template <int kRows, int kQuads, bool kMinimum>
EDGELLM_INLINED inline void accumulate_rows(const int16_t* wide, const float* w_scale, const float* minimum, const int16_t* x,
                     const float* x_scale, const float* total, float* acc) {
  __m256i sum[kRows][2];
  auto one = [&](auto quad, auto starts) EDGELLM_INLINED {
    const int16_t* w = wide + 4 * kPanel * quad;
    const __m256i v0 = load(w), v1 = load(w + 16), w0 = load(w + 32), w1 = load(w + 48);
    unrolled<kRows>([&](auto row) EDGELLM_INLINED {
      const __m256i first = pair(x + row * kTile + 4 * quad), second = pair(x + row * kTile + 4 * quad + 2);
      if constexpr (starts) {
        sum[row][0] = product(v0, first);
        sum[row][1] = product(w0, first);
      } else {
        add_now(sum[row][0], v0, first);
        add_now(sum[row][1], w0, first);
      }
      add_now(sum[row][0], v1, second);
      add_now(sum[row][1], w1, second);
    });
  };
  unrolled<kQuads>([&](auto quad) EDGELLM_INLINED { one(quad, std::bool_constant<quad == 0>()); });
  __m256 scale[2] = {_mm256_loadu_ps(w_scale), _mm256_loadu_ps(w_scale + 8)}, least[2];
  keep(scale[0]), keep(scale[1]);  // read once, not with every row
  if constexpr (kMinimum) {
    least[0] = _mm256_loadu_ps(minimum), least[1] = _mm256_loadu_ps(minimum + 8);
    keep(least[0]), keep(least[1]);
  }
  unrolled<kRows>([&](auto row) EDGELLM_INLINED {
    const __m256 by = _mm256_broadcast_ss(x_scale + row), of = kMinimum ? _mm256_broadcast_ss(total + row) : by;
    unrolled<2>([&](auto half) EDGELLM_INLINED {
      float* to = acc + row * kPanel + 8 * half;
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[row][half]), scale[half]);
      __m256 now = _mm256_fmadd_ps(scaled, by, _mm256_loadu_ps(to));
      if constexpr (kMinimum) now = _mm256_fmadd_ps(least[half], of, now);
      _mm256_storeu_ps(to, now);
    });
  });
}

template <int kQuads, bool kMinimum>
void accumulate_all(const int16_t* wide, const float* w_scale, const float* minimum, const int16_t* x,
                    const float* x_scale, const float* total, int rows, float* acc) {
  constexpr int kMost = 4;
  for (; rows >= kMost; rows -= kMost, x += kMost * kTile, x_scale += kMost, total += kMost, acc += kMost * kPanel)
    accumulate_rows<kMost, kQuads, kMinimum>(wide, w_scale, minimum, x, x_scale, total, acc);
  for (; rows; --rows, x += kTile, ++x_scale, ++total, acc += kPanel)
    accumulate_rows<1, kQuads, kMinimum>(wide, w_scale, minimum, x, x_scale, total, acc);
}

inline void accumulate(const int8_t* weight, int quads, const float* w_scale, const float* minimum, const int16_t* x,
                       const float* x_scale, const float* total, int rows, float* acc) {
  alignas(32) int16_t wide[kPanel * kTile];
  widen(weight, quads, wide);
  auto all = quads == 8 ? minimum ? accumulate_all<8, true> : accumulate_all<8, false>
                        : minimum ? accumulate_all<16, true> : accumulate_all<16, false>;
  all(wide, w_scale, minimum, x, x_scale, total, rows, acc);
}

}  // namespace edgellm::EDGELLM_AVX2
