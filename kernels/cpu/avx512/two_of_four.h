// Decoding 2:4 along the input with AVX-512: instead of spreading the weights, the activations are gathered.
//
//   acc[o] += w_scale[o, g] * x_scale[g] * sum over quads j, k < 2 of  code[j, o, k] * x[4j + place[j, o, k]]
//
// A register holds two quads: in the int32 lane of output o the bytes (j, 0) (j, 1) (j + 1, 0) (j + 1, 1). Activations
// come as two planes of bytes, x = 256 * high + low; one vpshufb gathers 64 of a plane, the 16 inputs of a chunk being in
// every 128-bit lane. Multipliers of bytes want an unsigned side, the activations: the high plane holds high + 128, and
// 32768 * sum(code) is taken off at the end of a group.
#pragma once
#include "kernels/cpu/avx512/vectors.h"

namespace edgellm::EDGELLM_AVX512 {

constexpr int kChunkPlaces = 32;  // bytes of places before a chunk's codes; a chunk is four quads

constexpr int kAndOr = 0xEA, kAndXor = 0x6A;  // vpternlog: (a & b) | c, (a & b) ^ c

// The word of output o (two places, or two codes of 4 bits) in both halves of its int32 lane.
inline __m512i twice(const uint8_t* words) {
  static constexpr Bytes kWord = words_of([](int i) { return i / 2; });
  return _mm512_permutexvar_epi16(load(kWord), _mm512_castsi256_si512(load32(words)));
}

// Which of a chunk's 16 inputs the kept weights of quads 2 * kPair and 2 * kPair + 1 multiply.
template <int kPair>
__m512i index_of(__m512i places) {
  static constexpr Bytes kBy = words_of([](int i) { return 4 * kPair + 2 * (i % 2); });
  static constexpr Bytes kQuad = bytes_of([](int i) { return 4 * (2 * kPair + i / 2 % 2); });
  const __m512i place = _mm512_srlv_epi16(places, load(kBy));
  return _mm512_ternarylogic_epi32(place, _mm512_set1_epi8(3), load(kQuad), kAndOr);
}

// Signed codes of two quads, times 16 where VNNI's int32 sums leave room: a nibble then needs no shift down.
template <int kBits>
__m512i codes_of(const uint8_t* codes) {
  if constexpr (kBits == 8) {
    static constexpr Bytes kWord = words_of([](int i) { return i % 2 * 16 + i / 2; });
    return _mm512_xor_si512(_mm512_permutexvar_epi16(load(kWord), load(codes)), _mm512_set1_epi8(char(0x80)));
  }
#ifdef EDGELLM_VNNI
  static constexpr Bytes kBy = words_of([](int i) { return 4 - i % 2 * 4; });
  const __m512i nibble = _mm512_sllv_epi16(twice(codes), load(kBy));
  return _mm512_ternarylogic_epi32(nibble, _mm512_set1_epi8(char(0xF0)), _mm512_set1_epi8(char(0x80)), kAndXor);
#else
  static constexpr Bytes kBy = words_of([](int i) { return i % 2 * 4; });
  const __m512i nibble = _mm512_srlv_epi16(twice(codes), load(kBy));
  return _mm512_sub_epi8(_mm512_and_si512(nibble, _mm512_set1_epi8(15)), _mm512_set1_epi8(8));
#endif
}

#ifdef EDGELLM_VNNI

template <int kBits>
struct Gathered {
  __m512i low = _mm512_setzero_si512(), high = low, codes = low;

  void add(__m512i code, __m512i x_low, __m512i x_high) {
    codes = _mm512_dpbusd_epi32(codes, _mm512_set1_epi8(1), code);
    low = _mm512_dpbusd_epi32(low, x_low, code);
    high = _mm512_dpbusd_epi32(high, x_high, code);
    keep(codes);
    keep(low);
    keep(high);
  }
  __m512i sum() const {
    const __m512i total = _mm512_add_epi32(low, _mm512_slli_epi32(high, 8));
    const __m512i exact = _mm512_sub_epi32(total, _mm512_slli_epi32(codes, 15));
    return kBits == 4 ? _mm512_srai_epi32(exact, 4) : exact;
  }
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
          const __m512i places = twice(panel);
          const __m512i low = _mm512_broadcast_i32x4(load16(planes + 16 * chunk));
          const __m512i high = _mm512_broadcast_i32x4(load16(planes + kTile + 16 * chunk));
          auto pair = [&](__m512i index, const uint8_t* codes) {
            sums.add(codes_of<kBits>(codes), _mm512_shuffle_epi8(low, index), _mm512_shuffle_epi8(high, index));
          };
          pair(index_of<0>(places), panel + kChunkPlaces);
          pair(index_of<1>(places), panel + kChunkPlaces + 8 * kBits);
        }
        const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums.sum()), half16(scales + 2 * kPanel * g));
        y = _mm512_fmadd_ps(scaled, _mm512_set1_ps(*x_scale), y);
      }
    }
  }
  _mm512_storeu_ps(acc, y);
}

}  // namespace edgellm::EDGELLM_AVX512
