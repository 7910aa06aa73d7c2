// Vector blocks of dense and masked tiles with dot products: each kernel adds two of them, 8 inputs by 16 outputs.
//
//   sum[o] += sum over 8 inputs i of  code[o, i] * x[i],   x as two planes of bytes: every sdot comes twice
//
// What 64 weights, dropped ones too, cost with GCC 12: instructions of the ASIMD pipes, bytes, and the cycles that
// llvm-mca 19 counts for Neoverse N1 (Cortex-A76's twin: two ASIMD pipes, shifts in one of them, two loads), so bytes a
// cycle. A group's end adds 32 instructions, 20 cycles: 1.3 cycles a row of this table where groups are 64 inputs.
//
//               instructions  bytes  cycles  bytes a cycle
//   Dense4           12         32     6.0        5.3
//   Dense8           12         64     6.0       10.6
//   SparseIn 4       15.5       24     7.0        3.4
//   SparseIn 8       15         40     7.3        5.5
//   SparseOut 4      23         24    11.5        2.1
//   SparseOut 8      22         40    11.0        3.6
#pragma once
#include <cstring>

#include "kernels/cpu/neon/tables.h"
#include "kernels/cpu/neon/vectors.h"

namespace edgellm::neon {
namespace {

// kBytes, kMasks: of one block. kPlain: codes are multiplied as they are stored, their zero point not taken off.
// kTimes16: 4-bit codes are multiplied in the upper half of their byte. kOffset: what symmetric codes lost.

// Byte j holds weights j and j + 32 of [16 outputs][4 inputs].
struct Dense4 {
  static constexpr int kBytes = 32, kMasks = 0, kOffset = 0;
  static constexpr bool kPlain = true, kTimes16 = false;
  template <int kQuad>
  static void one(const uint8_t* codes, int8x16_t x, Sums& sums) {
    const uint8x16_t v = load(codes), w = load(codes + 16), low = vdupq_n_u8(15);
    sums.add<kQuad>(0, as_signed(vandq_u8(v, low)), x);
    sums.add<kQuad>(1, as_signed(vandq_u8(w, low)), x);
    sums.add<kQuad>(2, as_signed(vshrq_n_u8(v, 4)), x);
    sums.add<kQuad>(3, as_signed(vshrq_n_u8(w, 4)), x);
  }
  static void two(const uint8_t* codes, const uint8_t*, int8x16_t x, Sums& sums) {
    one<0>(codes, x, sums);
    one<1>(codes + kBytes, x, sums);
  }
};

struct Dense8 {
  static constexpr int kBytes = 64, kMasks = 0, kOffset = 128;
  static constexpr bool kPlain = false, kTimes16 = false;
  template <int kQuad>
  static void one(const uint8_t* codes, int8x16_t x, Sums& sums) {
    repeat<4>([&](int i) { sums.add<kQuad>(i, as_signed(veorq_u8(load(codes + 16 * i), vdupq_n_u8(128))), x); });
  }
  static void two(const uint8_t* codes, const uint8_t*, int8x16_t x, Sums& sums) {
    one<0>(codes, x, sums);
    one<1>(codes + kBytes, x, sums);
  }
};

// A masked block's 32 kept codes minus the zero point, 4-bit ones times 16: byte j holds codes j and j + 16.
template <int kBits>
void kept_codes(const uint8_t* codes, int8x16_t& first, int8x16_t& second) {
  if constexpr (kBits == 4) {
    const uint8x16_t packed = veorq_u8(load(codes), vdupq_n_u8(0x88));
    first = as_signed(vshlq_n_u8(packed, 4));
    second = as_signed(vandq_u8(packed, vdupq_n_u8(0xf0)));
  } else {
    first = as_signed(veorq_u8(load(codes), vdupq_n_u8(128)));
    second = as_signed(veorq_u8(load(codes + 16), vdupq_n_u8(128)));
  }
}
inline uint64_t eight(const uint8_t* masks) {
  uint64_t all;
  std::memcpy(&all, masks, 8);
  return all;
}

// 4:8 along the input: a block is 8 outputs of 8 inputs, a mask byte an output, whose four inputs are gathered by it.
template <int kBits>
struct SparseIn {
  static constexpr int kBytes = 4 * kBits, kMasks = 8, kOffset = 0;
  static constexpr bool kPlain = false, kTimes16 = kBits == 4;

  // Where the inputs of four outputs lie, four mask bytes from `byte` on.
  static uint8x16_t places(uint64_t masks, int byte) {
    auto one = [&](int i) { return uint64_t(kGather[masks >> 8 * (byte + i) & 255]); };
    return vcombine_u8(vcreate_u8(one(0) | one(1) << 32), vcreate_u8(one(2) | one(3) << 32));
  }
  static void one(const uint8_t* codes, const uint8_t* mask, int8x16_t low, int8x16_t high, int half, Sums& sums) {
    int8x16_t first, second;
    kept_codes<kBits>(codes, first, second);
    const uint64_t masks = eight(mask);
    const uint8x16_t a = places(masks, 0), b = places(masks, 4);
    sums.add(2 * half, first, vqtbl1q_s8(low, a), vqtbl1q_s8(high, a));
    sums.add(2 * half + 1, second, vqtbl1q_s8(low, b), vqtbl1q_s8(high, b));
  }
  static void two(const uint8_t* codes, const uint8_t* masks, int8x16_t x, Sums& sums) {
    const int8x16_t high = vextq_s8(x, x, 8);
    one(codes, masks, x, high, 0, sums);
    one(codes + kBytes, masks + kMasks, x, high, 1, sums);
  }
};

// 2:4 and 4:8 along the output: bits and codes run over [4 inputs][16 outputs], four codes for every eight outputs.
// Mask bytes pick the byte shuffles that put them in place, two inputs side by side; pairs of inputs then join to quads.
template <int kBits>
struct SparseOut {
  static constexpr int kBytes = 4 * kBits, kMasks = 8, kOffset = 0;
  static constexpr bool kPlain = false, kTimes16 = kBits == 4;

  static uint8x16_t by_turns(uint64_t a, uint64_t b) {
    const uint8x16_t first = vcombine_u8(vcreate_u8(a), vcreate_u8(0));
    return vzip1q_u8(first, vcombine_u8(vcreate_u8(b), vcreate_u8(0)));
  }
  template <int kQuad>
  static void one(const uint8_t* codes, const uint8_t* mask, int8x16_t x, Sums& sums) {
    int8x16_t first, second;  // inputs 0 and 1, 2 and 3
    kept_codes<kBits>(codes, first, second);
    const uint64_t masks = eight(mask);
    auto byte = [&](int i) { return masks >> 8 * i & 255; };
    auto add = [&](int i, int8x16_t inputs01, int8x16_t inputs23) {  // of eight outputs
      const uint8x16_t a = vreinterpretq_u8_s8(inputs01), b = vreinterpretq_u8_s8(inputs23);
      sums.add<kQuad>(i, as_signed(pairs_low(a, b)), x);
      sums.add<kQuad>(i + 1, as_signed(pairs_high(a, b)), x);
    };
    add(0, vqtbl1q_s8(first, by_turns(kSpread<0>[byte(0)], kSpread<8>[byte(2)])),
        vqtbl1q_s8(second, by_turns(kSpread<0>[byte(4)], kSpread<8>[byte(6)])));
    add(2, vqtbl1q_s8(first, by_turns(kSpread<4>[byte(1)], kSpread<12>[byte(3)])),
        vqtbl1q_s8(second, by_turns(kSpread<4>[byte(5)], kSpread<12>[byte(7)])));
  }
  static void two(const uint8_t* codes, const uint8_t* masks, int8x16_t x, Sums& sums) {
    one<0>(codes, masks, x, sums);
    one<1>(codes + kBytes, masks + kMasks, x, sums);
  }
};

}  // namespace
}  // namespace edgellm::neon
