// Loads and sums that the kernels for dot products share. Files that include this are compiled with flags of their own:
// each keeps its own copy of every function, so that the linker cannot hand one's to another.
#pragma once
#include <arm_neon.h>

#include "kernels/cpu/neon/neon.h"
#include "kernels/cpu/neon/repeat.h"

namespace edgellm::neon {
namespace {

inline uint8x16_t load(const uint8_t* p) { return vld1q_u8(p); }
inline int8x16_t load(const int8_t* p) { return vld1q_s8(p); }
inline int8x16_t as_signed(uint8x16_t v) { return vreinterpretq_s8_u8(v); }
template <int kBytes>
inline void prefetch(const uint8_t* p) {
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(p + i);
}
// 16-bit pairs of a and b by turns: of their first halves and of their second.
inline uint8x16_t pairs_low(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u16(vzip1q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
}
inline uint8x16_t pairs_high(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u16(vzip2q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
}

// Int32 sums of 16 outputs with either plane. Codes reach 128, times 16 or not: 128 * 32639 * 64 stays below 2^31.
struct Sums {
  int32x4_t low[4], high[4];

  explicit Sums(int32_t start = 0) {
    repeat<4>([&](int i) { low[i] = vdupq_n_s32(start), high[i] = vdupq_n_s32(0); });
  }
  // Outputs 4i .. 4i + 3: weight [4 outputs][4 inputs] times the same quad, 0 or 1, of x for all of them.
  template <int kQuad>
  void add(int i, int8x16_t weight, int8x16_t x) {
    low[i] = vdotq_laneq_s32(low[i], weight, x, kQuad);
    high[i] = vdotq_laneq_s32(high[i], weight, x, 2 + kQuad);
  }
  // The same, each output with inputs of its own.
  void add(int i, int8x16_t weight, int8x16_t x_low, int8x16_t x_high) {
    low[i] = vdotq_s32(low[i], weight, x_low);
    high[i] = vdotq_s32(high[i], weight, x_high);
  }
  int32x4_t whole(int i) const { return vaddq_s32(low[i], vshlq_n_s32(high[i], 8)); }
};

// y += sum * w_scale * x_scale + minimum * total, rounded the same wherever it is used.
inline float32x4_t scaled(float32x4_t y, float32x4_t sum, float32x4_t w_scale, float x_scale) {
  return vfmaq_n_f32(y, vmulq_f32(sum, w_scale), x_scale);
}
inline float32x4_t with_minimum(float32x4_t y, float32x4_t minimum, float total) {
  return vfmaq_n_f32(y, minimum, total);
}
inline void add_group(float* acc, const int32x4_t* sum, const float* w_scale, float x_scale, const float* minimum,
                      float total) {
  repeat<4>([&](int i) {
    float32x4_t y = scaled(vld1q_f32(acc + 4 * i), vcvtq_f32_s32(sum[i]), vld1q_f32(w_scale + 4 * i), x_scale);
    if (minimum) y = with_minimum(y, vld1q_f32(minimum + 4 * i), total);
    vst1q_f32(acc + 4 * i, y);
  });
}
inline float32x4_t half4(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }

}  // namespace
}  // namespace edgellm::neon
