// Sums of products of a group's codes (bytes of a block) and activations, an int32 lane for four inputs of an output.
//
// A code of an activation is 256 * high + low, both signed bytes, in planes [64 low][64 high] of a tile: VNNI's vpdpbusd
// multiplies unsigned codes of weights by signed bytes, and so does vpmaddubsw where weights have 4 bits. 8 bits would
// overflow the latter's int16 sums: without VNNI they are widened and meet int16 activations.
#pragma once
#include "kernels/cpu/avx512/vectors.h"

namespace edgellm::EDGELLM_AVX512 {

// The inputs of a quad, or of two for a wide block, in every output's lanes.
template <bool kWide>
__m512i inputs(const uint8_t* plane, int quad) {
  if constexpr (kWide) return eight_bytes(plane + 4 * quad);
  return four_bytes(plane + 4 * quad);
}

#ifdef EDGELLM_VNNI

template <int kBits>
struct Products {
  __m512i low = _mm512_setzero_si512(), high = low;

  template <bool kWide>
  void add(__m512i codes, const int16_t* q, int quad) {
    const auto* planes = reinterpret_cast<const uint8_t*>(q);
    low = _mm512_dpbusd_epi32(low, codes, inputs<kWide>(planes, quad));
    high = _mm512_dpbusd_epi32(high, codes, inputs<kWide>(planes + kTile, quad));
    keep(low);
    keep(high);
  }
  __m512i sum() const { return _mm512_add_epi32(low, _mm512_slli_epi32(high, 8)); }
};

#else

template <int kBits>
struct Products;

template <>
struct Products<4> {
  __m512i low = _mm512_setzero_si512(), high = low;  // int16 of two inputs: 8 blocks * 2 * 15 * 128 stay below 2^15

  template <bool kWide>
  void add(__m512i codes, const int16_t* q, int quad) {
    const auto* planes = reinterpret_cast<const uint8_t*>(q);
    low = _mm512_add_epi16(low, _mm512_maddubs_epi16(codes, inputs<kWide>(planes, quad)));
    high = _mm512_add_epi16(high, _mm512_maddubs_epi16(codes, inputs<kWide>(planes + kTile, quad)));
    keep(low);
    keep(high);
  }
  __m512i sum() const {
    const __m512i one = _mm512_set1_epi16(1), step = _mm512_set1_epi16(256);
    return _mm512_add_epi32(_mm512_madd_epi16(low, one), _mm512_madd_epi16(high, step));
  }
};

template <>
struct Products<8> {
  __m512i total = _mm512_setzero_si512();

  // Codes of inputs 0 and 2 are the low bytes of words, 1 and 3 the high ones; q has these pairs side by side.
  template <bool kWide>
  void add(__m512i codes, const int16_t* q, int quad) {
    const auto* pairs = reinterpret_cast<const uint8_t*>(q + 4 * quad);
    const __m512i even = _mm512_and_si512(codes, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(codes, 8);
    constexpr int kOdd = kWide ? 2 : 1;
    total = _mm512_add_epi32(total, _mm512_madd_epi16(even, inputs<kWide>(pairs, 0)));
    total = _mm512_add_epi32(total, _mm512_madd_epi16(odd, inputs<kWide>(pairs, kOdd)));
    keep(total);
  }
  __m512i sum() const { return total; }
};

#endif

// Two int32 an output, 0-7 in a and 8-15 in b, become one.
inline __m512i joined(__m512i a, __m512i b) {
  static constexpr Bytes kEven = dwords_of([](int i) { return 2 * i; });
  static constexpr Bytes kOdd = dwords_of([](int i) { return 2 * i + 1; });
  return _mm512_add_epi32(_mm512_permutex2var_epi32(a, load(kEven), b), _mm512_permutex2var_epi32(a, load(kOdd), b));
}

}  // namespace edgellm::EDGELLM_AVX512
