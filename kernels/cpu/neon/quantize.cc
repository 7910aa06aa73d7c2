// Activations to two planes of signed bytes, and half precision, with any 64-bit Arm processor's vectors.
//
//   code = round(x / scale),  scale = max|x| / 32639,  high = (code + 128) >> 8,  low = code - 256 * high
#include <arm_neon.h>

#include <cstring>

#include "kernels/cpu/neon/neon.h"

namespace edgellm::neon {

Part quantize(const float* x, int16_t* q, float* left) {
  float32x4_t most = vdupq_n_f32(0);
  for (int i = 0; i < kTile; i += 4) most = vmaxnmq_f32(most, vabsq_f32(vld1q_f32(x + i)));
  float peak = vmaxnmvq_f32(most);
  if (!(peak > 1e-30f)) peak = 0;  // kTop / peak would overflow
  Part part{peak / kTop, {}, {}, 0};
  const float inverse = peak > 0 ? kTop / peak : 0;
  auto* planes = reinterpret_cast<int8_t*>(q);
  float32x4_t squares = vdupq_n_f32(0);
  for (int half = 0; half < 2; ++half) {
    float32x4_t sum = vdupq_n_f32(0);
    int32x4_t codes = vdupq_n_s32(0);
    for (int i = kTile / 2 * half; i < kTile / 2 * (half + 1); i += 8) {
      const float32x4_t v = vld1q_f32(x + i), w = vld1q_f32(x + i + 4);
      const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(v, inverse)), b = vcvtnq_s32_f32(vmulq_n_f32(w, inverse));
      const int16x8_t code = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
      vst1q_s8(planes + 2 * i, vcombine_s8(vmovn_s16(code), vrshrn_n_s16(code, 8)));
      if (left) {
        vst1q_f32(left + i, vfmsq_n_f32(v, vcvtq_f32_s32(a), part.scale));
        vst1q_f32(left + i + 4, vfmsq_n_f32(w, vcvtq_f32_s32(b), part.scale));
      }
      sum = vaddq_f32(sum, vaddq_f32(v, w));
      codes = vaddq_s32(codes, vaddq_s32(a, b));
      squares = vfmaq_f32(vfmaq_f32(squares, w, w), v, v);
    }
    part.sum[half] = vaddvq_f32(sum);
    part.codes[half] = vaddvq_s32(codes);
  }
  part.squares = vaddvq_f32(squares);
  return part;
}

// What is left of fewer than four numbers is padded with zeros.
void to_half(const float* x, uint16_t* y, int n) {
  int i = 0;
  for (; i + 4 <= n; i += 4) vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
  if (i == n) return;
  float rest[4] = {};
  uint16_t halves[4];
  std::memcpy(rest, x + i, size_t(n - i) * sizeof *x);
  vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(rest))));
  std::memcpy(y + i, halves, size_t(n - i) * sizeof *y);
}

void from_half(const uint16_t* x, float* y, int n) {
  int i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
  if (i == n) return;
  uint16_t rest[4] = {};
  float floats[4];
  std::memcpy(rest, x + i, size_t(n - i) * sizeof *x);
  vst1q_f32(floats, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(rest))));
  std::memcpy(y + i, floats, size_t(n - i) * sizeof *y);
}

}  // namespace edgellm::neon
