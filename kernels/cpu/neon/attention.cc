// Attention's products and exponentials, and the activations that need exponentials, with any 64-bit Arm processor's
// vectors. Four rows at once: 16 sums in registers, and as many multiply-adds for 8 loads.
#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/neon/neon.h"
#include "kernels/cpu/neon/repeat.h"

namespace edgellm::neon {
namespace {

constexpr int kMost = 4;  // rows at once

// exp(x), x clamped to [-87.3, 88.3]: 2^round(x / ln 2) times a polynomial of degree 6 in the rest; within 2e-7.
float32x4_t exp4(float32x4_t x) {
  x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(-87.3f)), vdupq_n_f32(88.3f));
  const float32x4_t whole = vrndnq_f32(vmulq_n_f32(x, 1.44269504f));
  const float32x4_t rest = vfmsq_n_f32(vfmsq_n_f32(x, whole, 0.693359375f), whole, -2.12194440e-4f);
  float32x4_t y = vdupq_n_f32(1.0f / 720);
  for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    y = vfmaq_f32(vdupq_n_f32(term), y, rest);
  const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127)), 23);
  return vmulq_f32(y, vreinterpretq_f32_s32(power));
}

// Masked slots are -inf: they become exactly 0, not the smallest that exp4 gives.
float32x4_t exp_or_zero(float32x4_t x) {
  const uint32x4_t counts = vcgeq_f32(x, vdupq_n_f32(-87.3f));
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(exp4(x)), counts));
}

float32x4_t load4(const float* x) { return vld1q_f32(x); }
float32x4_t load4(const uint16_t* x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }
float32x4_t load4(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
float load1(const float* x) { return *x; }
float load1(const int8_t* x) { return *x; }
float load1(const uint16_t* x) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(*x))), 0); }

// kRows rows by kSlots slots in registers; T: float, or uint16_t for half precision. Every sum has the same order whatever the tile.
template <int kRows, int kSlots, typename T>
void scores_tile(const float* q, const T* key, int dim, float* s, int stride) {
  float32x4_t sum[kRows * kSlots];
  repeat<kRows * kSlots>([&](int i) { sum[i] = vdupq_n_f32(0); });
  int i = 0;
  for (; i + 4 <= dim; i += 4) {
    float32x4_t x[kRows];
    repeat<kRows>([&](int row) { x[row] = vld1q_f32(q + row * dim + i); });
    repeat<kSlots>([&](int j) {
      const float32x4_t k = load4(key + j * pitch<T>(dim) + i);
      repeat<kRows>([&](int row) { sum[row * kSlots + j] = vfmaq_f32(sum[row * kSlots + j], x[row], k); });
    });
  }
  repeat<kRows * kSlots>([&](int at) { s[at / kSlots * stride + at % kSlots] = vaddvq_f32(sum[at]); });
  for (; i < dim; ++i)
    for (int row = 0; row < kRows; ++row)
      for (int j = 0; j < kSlots; ++j) s[row * stride + j] += q[row * dim + i] * load1(key + j * pitch<T>(dim) + i);
}

// Bytes of the cache read at `at`, once by a loop: what it reads later is fetched.
template <typename T>
void fetch_ahead(const T* at, int64_t bytes) {
  const auto* later = reinterpret_cast<const uint8_t*>(at) + kAhead;
  for (int64_t i = 0; kOfCache<T> && i < bytes; i += 64) __builtin_prefetch(later + i);
}

// Eight sums at least: a multiply-add takes four cycles, and two start in each.
template <int kRows, typename T>
void scores_rows(const float* q, const T* key, int n, int dim, float* s, int stride, bool ahead) {
  constexpr int kSlots = kRows == 1 ? 8 : 4;
  int j = 0;
  for (; j + kSlots <= n; j += kSlots) {
    const T* some = key + j * pitch<T>(dim);
    if (ahead) fetch_ahead(some, slots_bytes<T>(kSlots, dim));
    scores_tile<kRows, kSlots>(q, some, dim, s + j, stride);
  }
  for (; j < n; ++j) scores_tile<kRows, 1>(q, key + j * pitch<T>(dim), dim, s + j, stride);
}

// kRows rows by 4 * kWide dimensions in registers.
template <int kRows, int kWide, typename T>
void mix_tile(const float* p, int stride, const T* value, int n, int dim, float* y, bool ahead) {
  float32x4_t sum[kRows * kWide];
  repeat<kRows * kWide>([&](int i) { sum[i] = vld1q_f32(y + i / kWide * dim + i % kWide * 4); });
  for (int j = 0; j < n; ++j) {
    if (ahead) fetch_ahead(value + j * pitch<T>(dim), slots_bytes<T>(1, dim));
    repeat<kWide>([&](int i) {
      const float32x4_t v = load4(value + j * pitch<T>(dim) + 4 * i);
      repeat<kRows>([&](int row) { sum[row * kWide + i] = vfmaq_n_f32(sum[row * kWide + i], v, p[row * stride + j]); });
    });
  }
  repeat<kRows * kWide>([&](int i) { vst1q_f32(y + i / kWide * dim + i % kWide * 4, sum[i]); });
}

// Vectors side by side in a tile of so many rows.
constexpr int wide(int rows) { return rows == 1 ? 8 : 4; }

template <int kRows, typename T>
void mix_rows(const float* p, int stride, const T* value, int n, int dim, float* y, bool ahead) {
  constexpr int kWide = wide(kRows);
  int i = 0;
  for (; i + 4 * kWide <= dim; i += 4 * kWide) mix_tile<kRows, kWide>(p, stride, value + i, n, dim, y + i, ahead && i == 0);
  for (; i + 4 <= dim; i += 4) mix_tile<kRows, 1>(p, stride, value + i, n, dim, y + i, ahead && i == 0);
  for (; i < dim; ++i)
    for (int row = 0; row < kRows; ++row)
      for (int j = 0; j < n; ++j) y[row * dim + i] += p[row * stride + j] * load1(value + j * pitch<T>(dim) + i);
}

template <typename T>
void scores_of(const float* q, int rows, const T* key, int n, int dim, float* s, int stride) {
  constexpr decltype(&scores_rows<1, T>) kSome[] = {nullptr, scores_rows<1, T>, scores_rows<2, T>, scores_rows<3, T>,
                                                    scores_rows<4, T>};
  for (int row = 0; row < rows; row += kMost)
    kSome[std::min(kMost, rows - row)](q + row * dim, key, n, dim, s + row * stride, stride, row == 0);
}

template <typename T>
void mix_of(const float* p, int stride, int rows, const T* value, int n, int dim, float* y) {
  constexpr decltype(&mix_rows<1, T>) kSome[] = {nullptr, mix_rows<1, T>, mix_rows<2, T>, mix_rows<3, T>, mix_rows<4, T>};
  for (int row = 0; row < rows; row += kMost)
    kSome[std::min(kMost, rows - row)](p + row * stride, stride, value, n, dim, y + row * dim, row == 0);
}

}  // namespace

void scores(const float* q, int rows, const float* key, int n, int dim, float* s, int stride) {
  scores_of(q, rows, key, n, dim, s, stride);
}
void mix(const float* p, int stride, int rows, const float* value, int n, int dim, float* y) {
  mix_of(p, stride, rows, value, n, dim, y);
}
void scores_half(const float* q, int rows, const uint16_t* key, int n, int dim, float* s, int stride) {
  scores_of(q, rows, key, n, dim, s, stride);
}
void mix_half(const float* p, int stride, int rows, const uint16_t* value, int n, int dim, float* y) {
  mix_of(p, stride, rows, value, n, dim, y);
}
void scores_int8(const float* q, int rows, const int8_t* key, int n, int dim, float* s, int stride) {
  scores_of(q, rows, key, n, dim, s, stride);
}
void mix_int8(const float* p, int stride, int rows, const int8_t* value, int n, int dim, float* y) {
  mix_of(p, stride, rows, value, n, dim, y);
}
void from_int8(const int8_t* x, float* y, int n) {
  int i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(y + i, load4(x + i));
  for (; i < n; ++i) y[i] = x[i];
}

float largest(const float* s, int n) {
  float32x4_t top = vdupq_n_f32(s[0]);
  int j = 0;
  for (; j + 4 <= n; j += 4) top = vmaxq_f32(top, vld1q_f32(s + j));
  float most = vmaxvq_f32(top);
  for (; j < n; ++j) most = s[j] > most ? s[j] : most;
  return most;
}

float exponentials(float* s, int n, float most) {
  const float32x4_t top = vdupq_n_f32(most);
  float32x4_t sum = vdupq_n_f32(0);
  int j = 0;
  for (; j + 4 <= n; j += 4) {
    const float32x4_t y = exp_or_zero(vsubq_f32(vld1q_f32(s + j), top));
    vst1q_f32(s + j, y);
    sum = vaddq_f32(sum, y);
  }
  if (j == n) return vaddvq_f32(sum);
  float rest[4];
  for (int i = 0; i < 4; ++i) rest[i] = j + i < n ? s[j + i] : -INFINITY;
  const float32x4_t y = exp_or_zero(vsubq_f32(vld1q_f32(rest), top));
  vst1q_f32(rest, y);
  for (int i = 0; j + i < n; ++i) s[j + i] = rest[i];
  return vaddvq_f32(vaddq_f32(sum, y));
}

void silu(const float* gate, const float* up, float* y) {
  for (int i = 0; i < kPanel; i += 4) {
    const float32x4_t x = vld1q_f32(gate + i), below = vaddq_f32(vdupq_n_f32(1), exp4(vnegq_f32(x)));
    vst1q_f32(y + i, vmulq_f32(vdivq_f32(x, below), vld1q_f32(up + i)));
  }
}

// 0.5 x (1 + tanh(z)) = x / (1 + exp(-2z))
void gelu_tanh(const float* gate, const float* up, float* y) {
  for (int i = 0; i < kPanel; i += 4) {
    const float32x4_t x = vld1q_f32(gate + i);
    const float32x4_t z = vfmaq_n_f32(x, vmulq_f32(vmulq_f32(x, x), x), 0.044715f);
    const float32x4_t below = vaddq_f32(vdupq_n_f32(1), exp4(vmulq_n_f32(z, -2 * 0.7978845608f)));
    vst1q_f32(y + i, vmulq_f32(vdivq_f32(x, below), vld1q_f32(up + i)));
  }
}

}  // namespace edgellm::neon
