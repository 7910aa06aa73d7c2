// q . key for many rows with AVX2: prefill, over keys that were widened to float32.
#pragma once
#include "kernels/cpu/avx2/cached.h"

namespace edgellm::EDGELLM_AVX2 {

// Many rows share a block of slots that is transposed once: a lane is then a slot, and nothing is summed across lanes. The
// eight partial sums that a lane's number in scores_tile stands for come one after the other, and meet as `sums` adds them.
constexpr int kSlotsBlock = 64;  // what fits the transposed block
constexpr int kManyRows = 9;

// key [8 slots][dim] from i on becomes turned [8 inputs][kSlotsBlock].
inline void transpose8(const float* key, int dim, float* turned) {
  __m256 a[8], b[8];
  unrolled<4>([&](auto j) {
    const __m256 x = _mm256_loadu_ps(key + 2 * j * dim), y = _mm256_loadu_ps(key + (2 * j + 1) * dim);
    a[2 * j] = _mm256_unpacklo_ps(x, y), a[2 * j + 1] = _mm256_unpackhi_ps(x, y);
  });
  unrolled<2>([&](auto j) {
    unrolled<2>([&](auto i) {
      const __m256 x = a[4 * j + i], y = a[4 * j + 2 + i];
      b[4 * j + 2 * i] = _mm256_shuffle_ps(x, y, 0x44), b[4 * j + 2 * i + 1] = _mm256_shuffle_ps(x, y, 0xee);
    });
  });
  unrolled<4>([&](auto i) {
    _mm256_store_ps(turned + i * kSlotsBlock, _mm256_permute2f128_ps(b[i], b[4 + i], 0x20));
    _mm256_store_ps(turned + (4 + i) * kSlotsBlock, _mm256_permute2f128_ps(b[i], b[4 + i], 0x31));
  });
}

// kRows rows by 16 slots: y[row][half] = sum_k q[row][8k + lane] * turned[8k + lane][8 * half ...]
template <int kRows>
inline __attribute__((always_inline)) void lane_sums(const float* q, const float* turned, int dim, __m256 (&y)[kRows][2]) {
  unrolled<kRows>([&](auto row) { y[row][0] = y[row][1] = _mm256_setzero_ps(); });
  for (int i = 0; i < dim; i += 8, turned += 8 * kSlotsBlock) {
    const __m256 low = _mm256_load_ps(turned), high = _mm256_load_ps(turned + 8);
    unrolled<kRows>([&](auto row) {
      const __m256 x = _mm256_broadcast_ss(q + row * dim + i);
      y[row][0] = _mm256_fmadd_ps(x, low, y[row][0]);
      y[row][1] = _mm256_fmadd_ps(x, high, y[row][1]);
    });
  }
}

// s[row][16 slots] = ((l0 + l1) + (l2 + l3)) + ((l4 + l5) + (l6 + l7)) of lane sums l.
template <int kRows>
void scores_turned(const float* q, const float* turned, int dim, float* s, int stride) {
  __m256 whole[kRows][2], half[kRows][2], pair[kRows][2], one[kRows][2];
  auto plus = [](auto& to, const auto& x) {
    unrolled<kRows>([&](auto row) {
      to[row][0] = _mm256_add_ps(to[row][0], x[row][0]), to[row][1] = _mm256_add_ps(to[row][1], x[row][1]);
    });
  };
  auto lane = [&](int i, auto& y) { lane_sums<kRows>(q + i, turned + i * kSlotsBlock, dim, y); };
  auto two = [&](int i, auto& y) { lane(i, y), lane(i + 1, one), plus(y, one); };
  two(0, whole), two(2, pair), plus(whole, pair);
  two(4, half), two(6, pair), plus(half, pair);
  plus(whole, half);
  unrolled<kRows>([&](auto row) {
    _mm256_storeu_ps(s + row * stride, whole[row][0]), _mm256_storeu_ps(s + row * stride + 8, whole[row][1]);
  });
}

// The slots that make whole sixteens; the others are left.
inline int scores_many(const float* q, int rows, const float* key, int n, int dim, float* s, int stride) {
  alignas(32) float turned[kWideDim * kSlotsBlock];
  const int slots = n / 16 * 16;
  for (int j = 0; j < slots; j += 8)
    for (int i = 0; i < dim; i += 8) transpose8(key + j * dim + i, dim, turned + i * kSlotsBlock + j);
  int row = 0;
  for (; row + 3 <= rows; row += 3)
    for (int j = 0; j < slots; j += 16) scores_turned<3>(q + row * dim, turned + j, dim, s + row * stride + j, stride);
  for (; row < rows; ++row)
    for (int j = 0; j < slots; j += 16) scores_turned<1>(q + row * dim, turned + j, dim, s + row * stride + j, stride);
  return slots;
}

}  // namespace edgellm::EDGELLM_AVX2
