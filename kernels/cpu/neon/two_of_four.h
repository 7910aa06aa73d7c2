// 2:4 along the input with dot products: activations are gathered by the places of the kept weights.
//
//   sum[o] += sum over quads j, k < 2 of  code[j, o, k] * x[4j + place[j, o, k]]
//
// sdot wants four products of one output side by side, and a quad has two: codes and places of two quads join, even
// quads (0 and 2) and odd ones (1 and 3) of a chunk. One table of 16 bytes a plane then holds all four quads.
// Counted as in blocks.h, 64 weights of 4 bits cost 17 instructions and 8.5 cycles for 24 bytes, 2.8 bytes a cycle,
// those of 8 bits 16.5 and 8.3 for 40 bytes, 4.8 bytes a cycle.
#pragma once
#include "kernels/cpu/neon/vectors.h"

namespace edgellm::neon {
namespace {

constexpr int kChunkPlaces = 32;  // bytes of places before a chunk's codes; a chunk is four quads

// What the gather wants of 16 inputs: 16 low bytes, then 16 high ones, quads in the order 0 2 1 3.
inline void arrange_places(int16_t* q) {
  auto* at = reinterpret_cast<int8_t*>(q);
  for (int i = 0; i < kRowBytes; i += 32) {
    const int32x4_t a = vreinterpretq_s32_s8(load(at + i)), b = vreinterpretq_s32_s8(load(at + i + 16));
    vst1q_s8(at + i, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
    vst1q_s8(at + i + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
  }
}

// Codes of eight outputs, from the byte of their first: of four outputs each, even and odd quads.
struct Codes {
  int8x16_t even[2], odd[2];
};
template <int kBits>
Codes codes_of(const uint8_t* codes) {
  if constexpr (kBits == 4) {  // a byte has an even quad low, an odd one high; codes - 8 in the upper half, times 16
    const uint8x16_t zero = vdupq_n_u8(0x88), high = vdupq_n_u8(0xf0);
    const uint8x16_t v = veorq_u8(load(codes), zero), w = veorq_u8(load(codes + 32), zero);
    const uint8x16_t a = pairs_low(v, w), b = pairs_high(v, w);
    return {{as_signed(vshlq_n_u8(a, 4)), as_signed(vshlq_n_u8(b, 4))},
            {as_signed(vandq_u8(a, high)), as_signed(vandq_u8(b, high))}};
  } else {
    auto quad = [&](int i) { return veorq_u8(load(codes + 32 * i), vdupq_n_u8(128)); };
    const uint8x16_t a = quad(0), b = quad(1), c = quad(2), d = quad(3);
    return {{as_signed(pairs_low(a, c)), as_signed(pairs_high(a, c))},
            {as_signed(pairs_low(b, d)), as_signed(pairs_high(b, d))}};
  }
}

template <int kBits>
struct TwoOfFour {
  static constexpr int kChunk = kChunkPlaces + 16 * kBits;

  static void chunk(const uint8_t* bytes, const int8_t* x, Sums& sums) {
    const int8x16_t low = load(x), high = load(x + 16);
    const uint8x16_t three = vdupq_n_u8(3);  // of a place's byte only two bits count: the rest says where the quad lies
    const uint8x16_t even = vreinterpretq_u8_u32(vdupq_n_u32(0x04040000));
    const uint8x16_t odd = vreinterpretq_u8_u32(vdupq_n_u32(0x0c0c0808));
    auto eight = [&](int half) {
      const uint8x16_t places = load(bytes + 16 * half), later = vshrq_n_u8(places, 4);
      const Codes codes = codes_of<kBits>(bytes + kChunkPlaces + 16 * half);
      auto four = [&](int i, uint8x16_t joined, int8x16_t even_codes, int8x16_t odd_codes) {
        const uint8x16_t a = vbslq_u8(three, joined, even), b = vbslq_u8(three, vshrq_n_u8(joined, 2), odd);
        sums.add(i, even_codes, vqtbl1q_s8(low, a), vqtbl1q_s8(high, a));
        sums.add(i, odd_codes, vqtbl1q_s8(low, b), vqtbl1q_s8(high, b));
      };
      four(2 * half, pairs_low(places, later), codes.even[0], codes.odd[0]);
      four(2 * half + 1, pairs_high(places, later), codes.even[1], codes.odd[1]);
    };
    eight(0);
    eight(1);
  }
};

}  // namespace
}  // namespace edgellm::neon
