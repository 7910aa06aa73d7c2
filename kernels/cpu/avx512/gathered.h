// A group's sums in decoding 2:4: signed codes of weights times the activations gathered for them (two_of_four.h), an int32
// lane for an output.
//
//   sum = sum over bytes of  code * ( 256 * (x_high - 128) + x_low )
#pragma once
#include "kernels/cpu/avx512/vectors.h"

namespace edgellm::EDGELLM_AVX512 {

// What 4-bit codes, and so their sums, are multiplied by: 16 where VNNI's int32 sums leave room, since a nibble then needs
// no shift down. A panel's sum is divided once.
#ifdef EDGELLM_VNNI
constexpr float kCodesTimes = 16;
#else
constexpr float kCodesTimes = 1;
#endif

#ifdef EDGELLM_VNNI

template <int kBits>
struct Gathered {
  __m512i low = _mm512_setzero_si512(), high = low, codes = low;  // the last times 128, what the high plane has too much

  void add(__m512i code, __m512i x_low, __m512i x_high) {
    codes = _mm512_dpbusd_epi32(codes, _mm512_set1_epi8(char(128)), code);
    low = _mm512_dpbusd_epi32(low, x_low, code);
    high = _mm512_dpbusd_epi32(high, x_high, code);
    keep(codes);
    keep(low);
    keep(high);
  }
  __m512i sum() const { return _mm512_add_epi32(low, _mm512_slli_epi32(_mm512_sub_epi32(high, codes), 8)); }
};

#else

template <int kBits>
struct Gathered;

template <>
struct Gathered<4> {
  __m512i low = _mm512_setzero_si512(), high = low, codes = low;  // int16: 8 * 2 * 255 * 8 stays below 2^15; int8

  void add(__m512i code, __m512i x_low, __m512i x_high) {
    codes = _mm512_add_epi8(codes, code);
    low = _mm512_add_epi16(low, _mm512_maddubs_epi16(x_low, code));
    high = _mm512_add_epi16(high, _mm512_maddubs_epi16(x_high, code));
    keep(codes);
    keep(low);
    keep(high);
  }
  __m512i sum() const {
    const __m512i one = _mm512_set1_epi16(1), pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), codes);
    const __m512i offset = _mm512_slli_epi32(_mm512_madd_epi16(pairs, one), 15);
    const __m512i both = _mm512_add_epi32(_mm512_madd_epi16(low, one), _mm512_madd_epi16(high, _mm512_set1_epi16(256)));
    return _mm512_sub_epi32(both, offset);
  }
};

// Products of 8 bits overflow int16: words are put together again, of the first and of the second kept weights.
template <>
struct Gathered<8> {
  __m512i total = _mm512_setzero_si512();

  void add(__m512i code, __m512i x_low, __m512i x_high) {
    constexpr int kSelect = 0xCA;  // a ? b : c
    const __m512i low = _mm512_set1_epi16(255);
    const __m512i first = _mm512_ternarylogic_epi32(low, x_low, _mm512_slli_epi16(x_high, 8), kSelect);
    const __m512i second = _mm512_ternarylogic_epi32(low, _mm512_srli_epi16(x_low, 8), x_high, kSelect);
    const __m512i first_code = _mm512_srai_epi16(_mm512_slli_epi16(code, 8), 8);
    total = _mm512_add_epi32(total, _mm512_madd_epi16(first_code, first));
    total = _mm512_add_epi32(total, _mm512_madd_epi16(_mm512_srai_epi16(code, 8), second));
    keep(total);
  }
  __m512i sum() const { return total; }
};

#endif

}  // namespace edgellm::EDGELLM_AVX512
