// Attention's products and exponentials with AVX2, and the activations that need exponentials.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/cpu/avx2/vectors.h"

namespace edgellm::EDGELLM_AVX2 {

// exp(x), x clamped to [-87.3, 88.3]: 2^round(x / ln 2) times a polynomial of degree 6 in the rest; within 2e-7.
inline __m256 exp8(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.3f)), _mm256_set1_ps(88.3f));
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m256 whole = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), kNearest);
  const __m256 high = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), x);
  const __m256 rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), high);
  __m256 y = _mm256_set1_ps(1.0f / 720);
  for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    y = _mm256_fmadd_ps(y, rest, _mm256_set1_ps(term));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(y, _mm256_castsi256_ps(power));
}

// The four sums of a, b, c and d.
inline __m128 sums(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 lanes = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
}

inline __m256 load8(const float* x) { return _mm256_loadu_ps(x); }
inline __m256 load8(const uint16_t* x) { return half8(x); }
inline __m256 load8(const int8_t* x) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
inline float load1(const float* x) { return *x; }
inline float load1(const int8_t* x) { return *x; }
inline float load1(const uint16_t* x) { return _cvtsh_ss(*x); }

// Of what is read from the cache itself, a line ahead for every line: blocks often begin on a page that no hardware
// prefetcher crosses into. Distance in bytes.
constexpr int kCacheAhead = 4096;
inline void fetch(const float*, int) {}
template <typename T>
void fetch(const T* x, int n) {
  for (int i = 0; i < n; i += 64 / int(sizeof(T))) _mm_prefetch(reinterpret_cast<const char*>(x + i) + kCacheAhead, _MM_HINT_T0);
}

constexpr int kWideDim = 256;  // the longest head that buffers on the stack are made for

// Lanes of a and b added in pairs: a0 + a1, a2 + a3, b0 + b1, b2 + b3, and the same of the upper halves.
inline __m256 in_pairs(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

// The sums of eight vectors, in their order.
inline __m256 eight_sums(const __m256 (&a)[8]) {
  const __m256 low = in_pairs(in_pairs(a[0], a[1]), in_pairs(a[2], a[3]));
  const __m256 high = in_pairs(in_pairs(a[4], a[5]), in_pairs(a[6], a[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

// Rows by four, two or one slots in registers: 7 by 2 sums and the keys fill them; one or two rows need four slots to
// have work while a sum is on its way. T: float, uint16_t for half precision, or int8_t. Every sum has the same order
// whatever the tile. Inputs from dim / 8 * 8 on are left.
template <int kRows, int kSlots, typename T>
inline __attribute__((always_inline)) void scores_tile(const float* q, const T* key, int dim, float* s, int stride) {
  __m256 sum[kSlots][8];
  unrolled<8>([&](auto row) { unrolled<kSlots>([&](auto j) { sum[j][row] = _mm256_setzero_ps(); }); });
  unrolled<kSlots>([&](auto j) { fetch(key + j * pitch<T>(dim), dim); });
  for (int i = 0; i + 8 <= dim; i += 8) {
    __m256 k[kSlots];
    unrolled<kSlots>([&](auto j) { k[j] = load8(key + j * pitch<T>(dim) + i); });
    unrolled<kRows>([&](auto row) {
      __m256 x = _mm256_loadu_ps(q + kRows * i + 8 * row);
      if constexpr (kSlots > 1 && kRows < 7) keep(x);  // or it is read again for every slot
      unrolled<kSlots>([&](auto j) { sum[j][row] = _mm256_fmadd_ps(x, k[j], sum[j][row]); });
    });
  }
  if constexpr (kSlots == 4) {
    unrolled<kRows>([&](auto row) { _mm_storeu_ps(s + row * stride, sums(sum[0][row], sum[1][row], sum[2][row], sum[3][row])); });
    return;
  }
  const __m256 a = eight_sums(sum[0]), b = eight_sums(sum[kSlots - 1]);
  const __m256 pairs[2] = {_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)};  // rows 0 1 4 5, 2 3 6 7
  unrolled<kRows>([&](auto row) {
    const __m256 rows = pairs[row / 2 % 2];
    const __m128 two = row < 4 ? _mm256_castps256_ps128(rows) : _mm256_extractf128_ps(rows, 1);
    auto* to = reinterpret_cast<__m64*>(s + row * stride);
    if constexpr (kSlots == 1)
      _mm_store_ss(s + row * stride, row % 2 ? _mm_movehl_ps(two, two) : two);
    else if constexpr (row % 2)
      _mm_storeh_pi(to, two);
    else
      _mm_storel_pi(to, two);
  });
}

// q [rows][dim]; dim is at most kWideDim where there are several. Rows at the same place would fall on the same banks of
// L1 and be read one a cycle: eights of all rows are put side by side.
template <int kRows, typename T>
void scores_rows(const float* q, const T* key, int n, int dim, float* s, int stride) {
  alignas(32) float eights[kRows > 1 ? kRows * kWideDim : 8];
  const float* x = kRows > 1 ? eights : q;
  for (int i = 0; kRows > 1 && i + 8 <= dim; i += 8)
    for (int row = 0; row < kRows; ++row) _mm256_store_ps(eights + kRows * i + 8 * row, _mm256_loadu_ps(q + row * dim + i));
  int j = 0;
  for (; kRows <= 2 && j + 4 <= n; j += 4) scores_tile<kRows, 4>(x, key + j * pitch<T>(dim), dim, s + j, stride);
  for (; j + 2 <= n; j += 2) scores_tile<kRows, 2>(x, key + j * pitch<T>(dim), dim, s + j, stride);
  if (j < n) scores_tile<kRows, 1>(x, key + j * pitch<T>(dim), dim, s + j, stride);
  for (int i = dim / 8 * 8; i < dim; ++i)
    for (int row = 0; row < kRows; ++row)
      for (j = 0; j < n; ++j) s[row * stride + j] += q[row * dim + i] * load1(key + j * pitch<T>(dim) + i);
}

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

// kRows rows by 8 * kWide dimensions in registers.
template <int kRows, int kWide, typename T>
void mix_tile(const float* p, int stride, const T* value, int n, int dim, float* y) {
  __m256 sum[kRows][kWide];
  unrolled<kRows>([&](auto row) {
    unrolled<kWide>([&](auto i) { sum[row][i] = _mm256_loadu_ps(y + row * dim + 8 * i); });
  });
  for (int j = 0; j < n; ++j) {
    __m256 weight[kRows];
    unrolled<kRows>([&](auto row) { weight[row] = _mm256_broadcast_ss(p + row * stride + j); });
    unrolled<kWide>([&](auto i) {
      const __m256 v = load8(value + j * pitch<T>(dim) + 8 * i);
      unrolled<kRows>([&](auto row) { sum[row][i] = _mm256_fmadd_ps(weight[row], v, sum[row][i]); });
    });
  }
  unrolled<kRows>([&](auto row) {
    unrolled<kWide>([&](auto i) { _mm256_storeu_ps(y + row * dim + 8 * i, sum[row][i]); });
  });
}

template <int kRows, typename T>
void mix_rows(const float* p, int stride, const T* value, int n, int dim, float* y) {
  constexpr int kWide = kRows > 3 ? 2 : 4;
  int i = 0;
  for (; i + 8 * kWide <= dim; i += 8 * kWide) mix_tile<kRows, kWide>(p, stride, value + i, n, dim, y + i);
  for (; i + 8 <= dim; i += 8) mix_tile<kRows, 1>(p, stride, value + i, n, dim, y + i);
  for (; i < dim; ++i)
    for (int row = 0; row < kRows; ++row)
      for (int j = 0; j < n; ++j) y[row * dim + i] += p[row * stride + j] * load1(value + j * pitch<T>(dim) + i);
}

// Rows at once. Mixing three needs the fewest loads; of what must be widened four are mixed together.
constexpr int kScoresRows = 7;
template <typename T>
constexpr int kMixRows = sizeof(T) == sizeof(float) ? 3 : 4;

template <typename T>
void scores(const float* q, int rows, const T* key, int n, int dim, float* s, int stride) {
  constexpr decltype(&scores_rows<1, T>) kSome[] = {nullptr, scores_rows<1, T>, scores_rows<2, T>, scores_rows<3, T>,
                                                    scores_rows<4, T>, scores_rows<5, T>, scores_rows<6, T>, scores_rows<7, T>};
  if constexpr (sizeof(T) == sizeof(float)) {
    if (rows >= kManyRows && n <= kSlotsBlock && dim <= kWideDim && dim % 8 == 0) {
      const int done = scores_many(q, rows, key, n, dim, s, stride);
      key += done * dim, n -= done, s += done;
    }
  }
  for (int row = 0, some; row < rows; row += some) {
    some = dim > kWideDim ? 1 : std::min(rows - row, kScoresRows);
    kSome[some](q + row * dim, key, n, dim, s + row * stride, stride);
  }
}

template <typename T>
void mix(const float* p, int stride, int rows, const T* value, int n, int dim, float* y) {
  constexpr decltype(&mix_rows<1, T>) kSome[] = {nullptr, mix_rows<1, T>, mix_rows<2, T>, mix_rows<3, T>, mix_rows<4, T>};
  for (int row = 0, some; row < rows; row += some) {
    some = std::min(rows - row, kMixRows<T>);
    kSome[some](p + row * stride, stride, value, n, dim, y + row * dim);
  }
}

inline float largest_of(__m256 lanes) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

inline float largest(const float* s, int n) {
  __m256 top = _mm256_set1_ps(s[0]);
  int j = 0;
  for (; j + 8 <= n; j += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(s + j));
  float most = largest_of(top);
  for (; j < n; ++j) most = s[j] > most ? s[j] : most;
  return most;
}

// Masked slots are -inf: they become exactly 0, not the smallest that exp8 gives.
inline __m256 exp_or_zero(__m256 x) {
  return _mm256_and_ps(exp8(x), _mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_GE_OQ));
}

inline float exponentials(float* s, int n, float most) {
  const __m256 top = _mm256_set1_ps(most);
  __m256 sum = _mm256_setzero_ps();
  int j = 0;
  for (; j + 8 <= n; j += 8) {
    const __m256 y = exp_or_zero(_mm256_sub_ps(_mm256_loadu_ps(s + j), top));
    _mm256_storeu_ps(s + j, y);
    sum = _mm256_add_ps(sum, y);
  }
  if (j == n) return _mm_cvtss_f32(sums(sum, sum, sum, sum));
  alignas(32) float rest[8];
  for (int i = 0; i < 8; ++i) rest[i] = j + i < n ? s[j + i] : -INFINITY;
  const __m256 y = exp_or_zero(_mm256_sub_ps(_mm256_load_ps(rest), top));
  _mm256_store_ps(rest, y);
  for (int i = 0; j + i < n; ++i) s[j + i] = rest[i];
  sum = _mm256_add_ps(sum, y);
  return _mm_cvtss_f32(sums(sum, sum, sum, sum));
}

inline void silu(const float* gate, const float* up, float* y) {
  const __m256 one = _mm256_set1_ps(1);
  for (int i = 0; i < kPanel; i += 8) {
    const __m256 x = _mm256_loadu_ps(gate + i);
    const __m256 below = _mm256_add_ps(one, exp8(_mm256_sub_ps(_mm256_setzero_ps(), x)));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_div_ps(x, below), _mm256_loadu_ps(up + i)));
  }
}

// 0.5 x (1 + tanh(z)) = x / (1 + exp(-2z))
inline void gelu_tanh(const float* gate, const float* up, float* y) {
  const __m256 one = _mm256_set1_ps(1), cubic = _mm256_set1_ps(0.044715f), twice = _mm256_set1_ps(-2 * 0.7978845608f);
  for (int i = 0; i < kPanel; i += 8) {
    const __m256 x = _mm256_loadu_ps(gate + i);
    const __m256 z = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(x, x), x), cubic, x);
    const __m256 below = _mm256_add_ps(one, exp8(_mm256_mul_ps(z, twice)));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_div_ps(x, below), _mm256_loadu_ps(up + i)));
  }
}

}  // namespace edgellm::EDGELLM_AVX2
