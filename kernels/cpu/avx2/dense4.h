// Decoding dense 4 bits with AVX2: a byte of the tile is a code of outputs 0-7 and, above it, one of outputs 8-15, four
// inputs an output side by side. No lane ever moves: vpmaddubsw multiplies 32 codes, which are unsigned, by one plane of
// the activations' bytes (x = 256 * high + low, planes.h), so that 64 weights cost 12 instructions, and 8 with VNNI.
#pragma once
#include "kernels/cpu/avx2/planes.h"

namespace edgellm::EDGELLM_AVX2 {

// Products of bytes: sums of two inputs in int16, of which eight quads fit (2 * 8 * 15 * 128 stays below 2^15), or with
// VNNI of four in int32.
inline void add_bytes(__m256i& sum, __m256i codes, __m256i x) {
#ifdef EDGELLM_VNNI
  sum = _mm256_dpbusd_avx_epi32(sum, codes, x);
#else
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x));
#endif
  keep(sum);
}
inline void add_planes(__m256i& sum, __m256i low, __m256i high) {
#ifdef EDGELLM_VNNI
  sum = _mm256_add_epi32(sum, _mm256_add_epi32(low, _mm256_slli_epi32(high, 8)));
#else
  add(sum, low, _mm256_set1_epi16(1)), add(sum, high, _mm256_set1_epi16(256));
#endif
}

// Adds eight quads to int32 sums of outputs 0-7 and 8-15.
inline __attribute__((always_inline)) void eight_quads(const uint8_t* codes, const uint8_t* x, __m256i& a, __m256i& b) {
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i low_a = _mm256_setzero_si256(), low_b = low_a, high_a = low_a, high_b = low_a;
  unrolled<8>([&](auto quad) {
    if constexpr (quad % 2 == 0) fetch_ahead<64>(codes + 32 * quad, quad / 2);
    const __m256i w = load(codes + 32 * quad), v = _mm256_and_si256(w, nibble);
    const __m256i u = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
    const __m256i low = quad_of(x, quad), high = quad_of(x + kTile, quad);
    add_bytes(low_a, v, low), add_bytes(high_a, v, high);
    add_bytes(low_b, u, low), add_bytes(high_b, u, high);
  });
  add_planes(a, low_a, high_a);
  add_planes(b, low_b, high_b);
}

// kGroups: groups a tile, 1 or 2.
template <int kGroups, bool kMinimum>
void decode_dense4(const Format& f, const uint8_t* panel, const Row& x, float* acc) {
  const int32_t zero = kMinimum ? 0 : -f.zero_point();
  const int64_t tiles = f.tiles(), per_run = f.tiles_per_run(), step = x.rows;
  const auto* planes = reinterpret_cast<const uint8_t*>(x.q);
  const float *x_scale = x.scale, *sum = x.sum;
  const int32_t* codes_sum = x.codes;
  __m256 low = _mm256_setzero_ps(), high = low;
  for (int64_t first = 0; first < tiles; first += per_run) {
    const uint8_t* head = panel;
    panel += f.scale_bytes();
    for (int64_t tile = 0; tile < per_run; ++tile, x_scale += step, planes += 2 * kTile * step) {
      const __m256 by = _mm256_broadcast_ss(x_scale);
      for (int g = 0; g < kGroups; ++g, codes_sum += step, sum += step) {
        __m256i a = _mm256_set1_epi32(zero * *codes_sum), b = a;
        for (int eight = 0; eight < 2 / kGroups; ++eight, panel += 8 * 32)
          eight_quads(panel, planes + 32 * (g + eight), a, b);
        const uint8_t* scales = head + g * 2 * kPanel;
        low = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(a), half8(scales)), by, low);
        high = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(b), half8(scales + kPanel)), by, high);
        if constexpr (kMinimum) {
          const __m256 total = _mm256_broadcast_ss(sum);
          low = _mm256_fmadd_ps(half8(scales + kGroups * 2 * kPanel), total, low);
          high = _mm256_fmadd_ps(half8(scales + kGroups * 2 * kPanel + kPanel), total, high);
        }
      }
    }
  }
  _mm256_storeu_ps(acc, low);
  _mm256_storeu_ps(acc + 8, high);
}

}  // namespace edgellm::EDGELLM_AVX2
