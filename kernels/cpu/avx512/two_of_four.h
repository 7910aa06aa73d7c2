// Decoding 2:4 along the input with AVX-512: instead of spreading the weights, the activations are gathered.
//
//   acc[o] += w_scale[o, g] * x_scale[g] * sum over quads j, k < 2 of  code[j, o, k] * x[4j + place[j, o, k]]
//
// A register holds two quads, 0 and 2 of a chunk's four or 1 and 3: in the int32 lane of output o the bytes (j, 0) (j, 1)
// (j + 2, 0) (j + 2, 1). Activations come as two planes of bytes, x = 256 * high + low; one vpshufb gathers 64 of a plane,
// the 16 inputs of a chunk being in every 128-bit lane. Multipliers of bytes want an unsigned side, the activations: the
// high plane holds high + 128, and 32768 * sum(code) is taken off at the end of a group.
#pragma once
#include "kernels/cpu/avx512/gathered.h"

namespace edgellm::EDGELLM_AVX512 {

constexpr int kChunkPlaces = 32;  // bytes of places before a chunk's codes; a chunk is four quads

constexpr int kAndOr = 0xEA, kAndXor = 0x6A;  // vpternlog: (a & b) | c, (a & b) ^ c

// The word of output o (its places, or two codes of 4 bits) in both halves of its int32 lane.
inline __m512i twice(const uint8_t* words) {
  static constexpr Bytes kWord = words_of([](int i) { return i / 2; });
  return _mm512_permutexvar_epi16(load(kWord), _mm512_castsi256_si512(load32(words)));
}

// Of each output, in its lane, what belongs to quads 0 and 2, and to 1 and 3.
struct Quads {
  __m512i even, odd;
};

// Which of a chunk's 16 inputs its kept weights multiply.
inline Quads inputs_of(const uint8_t* places) {
  static constexpr Bytes kBy = words_of([](int i) { return i % 2 * 4; });
  static constexpr Bytes kEven = bytes_of([](int i) { return i / 2 % 2 * 8; });
  static constexpr Bytes kOdd = bytes_of([](int i) { return i / 2 % 2 * 8 + 4; });
  const __m512i even = _mm512_srlv_epi16(twice(places), load(kBy)), odd = _mm512_srli_epi16(even, 2);
  const __m512i three = _mm512_set1_epi8(3);
  return {_mm512_ternarylogic_epi32(even, three, load(kEven), kAndOr),
          _mm512_ternarylogic_epi32(odd, three, load(kOdd), kAndOr)};
}

// A chunk's codes, signed, kCodesTimes as large where they have 4 bits.
template <int kBits>
Quads codes_of(const uint8_t* codes) {
  const __m512i first = load(codes);  // 8 bits: of quads 0 and 1; 4 bits: of 0 (low) and 1, then of 2 and 3
  if constexpr (kBits == 8) {
    static constexpr Bytes kEven = words_of([](int i) { return i % 2 * 32 + i / 2; });
    static constexpr Bytes kOdd = words_of([](int i) { return i % 2 * 32 + 16 + i / 2; });
    const __m512i second = load(codes + 64), zero = _mm512_set1_epi8(char(0x80));
    return {_mm512_xor_si512(_mm512_permutex2var_epi16(first, load(kEven), second), zero),
            _mm512_xor_si512(_mm512_permutex2var_epi16(first, load(kOdd), second), zero)};
  }
  static constexpr Bytes kJoined = words_of([](int i) { return i % 2 * 16 + i / 2; });
  const __m512i both = _mm512_permutexvar_epi16(load(kJoined), first);
#ifdef EDGELLM_VNNI
  const __m512i high = _mm512_set1_epi8(char(0xF0)), zero = _mm512_set1_epi8(char(0x80));
  return {_mm512_ternarylogic_epi32(_mm512_slli_epi16(both, 4), high, zero, kAndXor),
          _mm512_ternarylogic_epi32(both, high, zero, kAndXor)};
#else
  const __m512i low = _mm512_set1_epi8(15), zero = _mm512_set1_epi8(8);
  return {_mm512_sub_epi8(_mm512_and_si512(both, low), zero),
          _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 4), low), zero)};
#endif
}

// kGroups: groups a tile, 1 or 2.
template <int kBits, int kGroups>
void decode_two_of_four(const Format& f, const uint8_t* panel, const Row& x, float* acc) {
  constexpr int kChunk = kChunkPlaces + 16 * kBits;
  const int64_t tiles = f.tiles(), per_run = f.tiles_per_run();
  const auto* planes = reinterpret_cast<const uint8_t*>(x.q);
  const float* x_scale = x.scale;
  __m512 y = _mm512_setzero_ps();
  for (int64_t first = 0; first < tiles; first += per_run) {
    const uint8_t* scales = panel;
    panel += f.scale_bytes();
    for (int64_t tile = 0; tile < per_run; ++tile, x_scale += x.rows, planes += 2 * kTile * x.rows) {
      fetch_four_pages<4 * kChunk>(panel);
      for (int g = 0; g < kGroups; ++g) {
        Gathered<kBits> sums;
        for (int chunk = g * 4 / kGroups; chunk < (g + 1) * 4 / kGroups; ++chunk, panel += kChunk) {
          const __m512i low = _mm512_broadcast_i32x4(load16(planes + 16 * chunk));
          const __m512i high = _mm512_broadcast_i32x4(load16(planes + kTile + 16 * chunk));
          const Quads inputs = inputs_of(panel), codes = codes_of<kBits>(panel + kChunkPlaces);
          sums.add(codes.even, _mm512_shuffle_epi8(low, inputs.even), _mm512_shuffle_epi8(high, inputs.even));
          sums.add(codes.odd, _mm512_shuffle_epi8(low, inputs.odd), _mm512_shuffle_epi8(high, inputs.odd));
        }
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums.sum()), half16(scales + 2 * kPanel * g));
        y = _mm512_fmadd_ps(scaled, _mm512_set1_ps(*x_scale), y);
      }
    }
  }
  _mm512_storeu_ps(acc, kBits == 4 ? _mm512_mul_ps(y, _mm512_set1_ps(1 / kCodesTimes)) : y);
}

}  // namespace edgellm::EDGELLM_AVX512
