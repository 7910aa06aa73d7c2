// A tile's codes in quad order, for many rows and for formats without a decoder, with vectors that every 64-bit Arm
// processor has.
#include <arm_neon.h>

#include <cstring>

#include "kernels/cpu/neon/neon.h"
#include "kernels/cpu/spread.h"

namespace edgellm::neon {
namespace {

// The kept codes of one block, minus the offset, as int8: f.kept() of them count, up to 64 are written.
void codes_to_int8(const Format& f, const uint8_t* codes, int8_t* out) {
  uint8_t copy[64];
  const size_t bytes = f.block_bytes();
  if (bytes % 16) codes = static_cast<uint8_t*>(std::memcpy(copy, codes, bytes));  // nothing past a block is read
  const uint8x16_t zero = vdupq_n_u8(uint8_t(offset(f))), low = vdupq_n_u8(15);
  auto store = [&](int8_t* to, uint8x16_t code) { vst1q_s8(to, vreinterpretq_s8_u8(vsubq_u8(code, zero))); };
  const int end = int(bytes), half = f.kept() / 2;
  if (f.bits == 8) {
    for (int i = 0; i < end; i += 16) store(out + i, vld1q_u8(codes + i));
    return;
  }
  for (int i = 0; i < end; i += 16) store(out + i, vandq_u8(vld1q_u8(codes + i), low));
  for (int i = 0; i < end; i += 16) store(out + half + i, vshrq_n_u8(vld1q_u8(codes + i), 4));
}

// Spread kept codes to their places, zeros between. Reads 8 bytes from each mask byte's first code on.
void expand(const int8_t* kept, const uint8_t* mask, int8_t* out) {
  uint8_t counts[8];
  vst1_u8(counts, vcnt_u8(vld1_u8(mask)));
  for (int i = 0; i < 8; ++i) {
    vst1_s8(out + 8 * i, vtbl1_s8(vld1_s8(kept), vcreate_s8(kSpread<0>[mask[i]])));
    kept += counts[i];
  }
}

// Block b into quad order. Along the input it is outputs [16/r] x inputs [4r] (r = 1 is quad order already), along the
// output [4 inputs][16 outputs].
void place(const Format& f, int b, const int8_t* block, int8_t* weight) {
  if (f.along_out) return vst4q_s8(weight + 64 * b, vld1q_s8_x4(block));
  const int r = f.reach(), outputs = kPanel / r;
  for (int o = 0; o < outputs; ++o)
    for (int q = 0; q < r; ++q)
      std::memcpy(weight + ((b / r * r + q) * kPanel + b % r * outputs + o) * 4, block + (o * r + q) * 4, 4);
}

// Two kept codes of every four inputs go where their places say: a byte of an output's four takes the code whose place
// it is.
void unpack_places(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept) {
  const uint8x16_t place = vreinterpretq_u8_u32(vdupq_n_u32(0x03020100)), one = vdupq_n_u8(1);
  const uint8x16_t firsts = vreinterpretq_u8_u32(uint32x4_t{0x00000000, 0x02020202, 0x04040404, 0x06060606});
  const uint8x16_t zero = vdupq_n_u8(uint8_t(offset(f)));
  for (int quad = 0; quad < kTile / 4; ++quad) {
    const uint8_t* chunk = tile + size_t(quad / 4) * (32 + 4 * f.block_bytes());
    const uint8_t* codes = chunk + 32 + 32 * (f.bits == 8 ? quad % 4 : quad % 4 / 2);
    const int8x16_t place_shift = vdupq_n_s8(int8_t(-2 * (quad % 4))), code_shift = vdupq_n_s8(quad % 2 ? -4 : 0);
    for (int half = 0; half < 2; ++half) {  // 8 outputs
      const uint8x16_t places = vandq_u8(vshlq_u8(vld1q_u8(chunk + 16 * half), place_shift), vdupq_n_u8(3));
      uint8x16_t code = vld1q_u8(codes + 16 * half);
      if (f.bits == 4) code = vandq_u8(vshlq_u8(code, code_shift), vdupq_n_u8(15));
      code = vsubq_u8(code, zero);
      for (int i = 0; i < 2; ++i) {  // 4 outputs
        const uint8x16_t first = vaddq_u8(firsts, vdupq_n_u8(uint8_t(8 * i))), second = vaddq_u8(first, one);
        const uint8x16_t a = vceqq_u8(vqtbl1q_u8(places, first), place);
        const uint8x16_t b = vceqq_u8(vqtbl1q_u8(places, second), place);
        const uint8x16_t w = vorrq_u8(vandq_u8(a, vqtbl1q_u8(code, first)), vandq_u8(b, vqtbl1q_u8(code, second)));
        const int at = 64 * quad + 32 * half + 16 * i;
        vst1q_s8(weight + at, vreinterpretq_s8_u8(w));
        if (kept) vst1q_s8(kept + at, vreinterpretq_s8_u8(vandq_u8(vorrq_u8(a, b), one)));
      }
    }
  }
}

}  // namespace

void unpack(const Format& f, const uint8_t* tile, int8_t* weight, int8_t* kept) {
  if (f.places()) return unpack_places(f, tile, weight, kept);
  const size_t bytes = f.block_bytes();
  if (!f.sparse()) {
    for (int b = 0; b < kBlocks; ++b) codes_to_int8(f, tile + size_t(b) * bytes, weight + 64 * b);
    if (kept) std::memset(kept, 1, 64 * kBlocks);
    return;
  }
  const uint8_t* codes = tile + 8 * kBlocks;
  const bool in_order = f.reach() == 1 && !f.along_out;
  int8_t packed[72] = {}, block[64], ones[72];
  std::memset(ones, 1, sizeof ones);
  for (int b = 0; b < kBlocks; ++b) {
    const uint8_t* mask = tile + 8 * b;
    codes_to_int8(f, codes + size_t(b) * bytes, packed);
    expand(packed, mask, in_order ? weight + 64 * b : block);
    if (!in_order) place(f, b, block, weight);
    if (!kept) continue;
    expand(ones, mask, in_order ? kept + 64 * b : block);
    if (!in_order) place(f, b, block, kept);
  }
}

}  // namespace edgellm::neon
