// A vector block of packed weights as 64 unsigned bytes, in one register; a dropped weight is the zero point.
//
// Dense and along the output: [16 outputs][4 inputs]. 4:8 along the input ("wide"): [8 outputs][8 inputs], blocks of
// outputs 0-7 and 8-15 by turns.
#pragma once
#include "kernels/cpu/avx512/vectors.h"

namespace edgellm::EDGELLM_AVX512 {

template <int kBits_>
struct Dense {
  static constexpr int kBits = kBits_, kBytes = 8 * kBits, kMasks = 0;
  static constexpr bool kWide = false;
  static __m512i bytes(const uint8_t* codes, const uint8_t*) {
    if constexpr (kBits == 8) return load(codes);
    return nibbles(_mm512_broadcast_i64x4(load32(codes)));
  }
};

// 32 kept codes of a block spread over 64 weights. Of every eight weights four are kept, which VBMI2 need not know.
template <int kBits>
__m512i spread(const uint8_t* codes, const uint8_t* mask) {
  const __m512i zero = _mm512_set1_epi8(char(1 << (kBits - 1)));
  uint64_t bits;
  std::memcpy(&bits, mask, 8);
#ifdef EDGELLM_VNNI
  if constexpr (kBits == 8) return _mm512_mask_expand_epi8(zero, bits, _mm512_castsi256_si512(load32(codes)));
  static constexpr Bytes kBy = words_of([](int i) { return i / 8 % 2 * 4; });  // low nibbles, then high ones
  const __m512i kept = _mm512_srlv_epi16(_mm512_broadcast_i32x4(load16(codes)), load(kBy));
  return _mm512_mask_expand_epi8(zero, bits, _mm512_and_si512(kept, _mm512_set1_epi8(15)));
#else
  // How many of its eight are kept up to each weight: a sum over the bytes below, which is a product with 1 1 1 ...
  const __m512i one = _mm512_maskz_set1_epi8(bits, 1), rank = _mm512_mullo_epi64(one, _mm512_set1_epi8(1));
  // Of two eights in a 128-bit lane the first starts at code 0, or at 8 in odd lanes where these hold 16 codes.
  static constexpr Bytes kFirst = bytes_of([](int i) { return i / 8 % 2 * 4 + (kBits == 4 ? i / 16 % 2 * 8 : 0) - 1; });
  const __m512i from = _mm512_add_epi8(rank, load(kFirst));
  if constexpr (kBits == 4) {
    const __m512i kept = nibbles(_mm512_broadcast_i32x4(load16(codes)));
    return _mm512_mask_shuffle_epi8(zero, bits, kept, from);
  }
  static constexpr Bytes kLane = qwords_of([](int i) { return i / 2; });
  const __m512i kept = _mm512_permutexvar_epi64(load(kLane), _mm512_castsi256_si512(load32(codes)));
  return _mm512_mask_shuffle_epi8(zero, bits, kept, from);
#endif
}

template <int kBits_>
struct Sparse48In {
  static constexpr int kBits = kBits_, kBytes = 4 * kBits, kMasks = 8;
  static constexpr bool kWide = true;
  static __m512i bytes(const uint8_t* codes, const uint8_t* mask) { return spread<kBits>(codes, mask); }
};

// [4 inputs][16 outputs] becomes [16 outputs][4 inputs].
inline __m512i transposed(__m512i v) {
#ifdef EDGELLM_VNNI
  static constexpr Bytes kFrom = bytes_of([](int i) { return i % 4 * 16 + i / 4; });
  return _mm512_permutexvar_epi8(load(kFrom), v);
#else  // four outputs of all inputs into a lane, then within lanes
  static constexpr Bytes kQuads = dwords_of([](int i) { return i % 4 * 4 + i / 4; });
  static constexpr Bytes kWithin = bytes_of([](int i) { return i % 4 * 4 + i / 4 % 4; });
  return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(load(kQuads), v), load(kWithin));
#endif
}

// 2:4 and 4:8 along the output: a group of eight bits is eight outputs of one input.
template <int kBits_>
struct SparseOut {
  static constexpr int kBits = kBits_, kBytes = 4 * kBits, kMasks = 8;
  static constexpr bool kWide = false;
  static __m512i bytes(const uint8_t* codes, const uint8_t* mask) { return transposed(spread<kBits>(codes, mask)); }
};

}  // namespace edgellm::EDGELLM_AVX512
