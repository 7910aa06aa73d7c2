// Intrinsics that this processor lacks, in plain C++: SIMDe's, and loops for those that SIMDe 0.7.4 has not.
#pragma once
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <array>
#include <cmath>
#include <cstring>

#define EDGELLM_KEEP(vector) (void)vector

using __mmask16 = uint16_t;
using __mmask32 = uint32_t;
using __mmask64 = uint64_t;
enum { _MM_FROUND_NO_EXC = 8, _MM_PERM_DBCA = 0b11011000 };

namespace emulated {

template <typename Lane, typename Vector>
std::array<Lane, sizeof(Vector) / sizeof(Lane)> lanes(const Vector& v) {
  std::array<Lane, sizeof(Vector) / sizeof(Lane)> out;
  std::memcpy(&out, &v, sizeof v);
  return out;
}

// The vector whose i-th lane is each(i).
template <typename Vector, typename Lane, typename Each>
Vector vector(Each each) {
  std::array<Lane, sizeof(Vector) / sizeof(Lane)> in;
  for (size_t i = 0; i < in.size(); ++i) in[i] = Lane(each(i));
  Vector v;
  std::memcpy(&v, &in, sizeof v);
  return v;
}

// Every lane of v converted to another type.
template <typename To, typename Lane, typename From, typename Vector>
To converted(const Vector& v) {
  const auto in = lanes<From>(v);
  return vector<To, Lane>([&](size_t i) { return in[i]; });
}

template <typename Vector, typename Lane>
Vector loaded(const Vector& otherwise, uint64_t mask, const void* p) {
  const auto in = lanes<Lane>(otherwise);
  return vector<Vector, Lane>([&](size_t i) { return mask >> i & 1 ? static_cast<const Lane*>(p)[i] : in[i]; });
}

template <typename Lane, typename Vector>
void stored(void* p, uint64_t mask, const Vector& v) {
  for (size_t i = 0; i < sizeof(Vector) / sizeof(Lane); ++i)
    if (mask >> i & 1) static_cast<Lane*>(p)[i] = lanes<Lane>(v)[i];
}

template <typename Lane>
__m512i expanded(const __m512i& otherwise, uint64_t mask, const __m512i& v) {
  const auto in = lanes<Lane>(v), other = lanes<Lane>(otherwise);
  size_t next = 0;
  return vector<__m512i, Lane>([&](size_t i) { return mask >> i & 1 ? in[next++] : other[i]; });
}

// Sums or maxima by halves, as the compiler does it.
template <typename Lane, typename Vector, typename Both>
Lane reduced(const Vector& v, Both both) {
  auto in = lanes<Lane>(v);
  for (size_t half = in.size() / 2; half; half /= 2)
    for (size_t i = 0; i < half; ++i) in[i] = both(in[i], in[i + half]);
  return in[0];
}

inline __m512i products_of_pairs(const __m512i& a, const __m512i& b) {
  const auto x = lanes<int16_t>(a), y = lanes<int16_t>(b);
  return vector<__m512i, int32_t>([&](size_t i) { return x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]; });
}

}  // namespace emulated

inline __m256i _mm256_dpwssd_avx_epi32(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline __m256i _mm256_dpbusd_avx_epi32(__m256i sum, __m256i a, __m256i b) { return _mm256_dpbusd_epi32(sum, a, b); }
inline float _cvtsh_ss(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
inline uint16_t _cvtss_sh(float x, int) { return uint16_t(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), 0))); }

#undef _mm512_madd_epi16  // SIMDe's name takes four arguments
inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) { return emulated::products_of_pairs(a, b); }

inline __m512 _mm512_cvtepi32_ps(__m512i v) { return emulated::converted<__m512, float, int32_t>(v); }
inline __m512i _mm512_cvtepi8_epi32(__m128i v) { return emulated::converted<__m512i, int32_t, int8_t>(v); }
inline __m128i _mm512_cvtepi32_epi8(__m512i v) { return emulated::converted<__m128i, int8_t, int32_t>(v); }
inline __m256i _mm512_cvtepi32_epi16(__m512i v) { return emulated::converted<__m256i, int16_t, int32_t>(v); }
inline __m512i _mm512_cvtps_epi32(__m512 v) {
  const auto in = emulated::lanes<float>(v);
  return emulated::vector<__m512i, int32_t>([&](size_t i) { return std::lrintf(in[i]); });
}
inline __m512 _mm512_cvtph_ps(__m256i v) {
  const auto in = emulated::lanes<uint16_t>(v);
  return emulated::vector<__m512, float>([&](size_t i) { return _cvtsh_ss(in[i]); });
}
inline __m256i _mm512_cvtps_ph(__m512 v, int) {
  const auto in = emulated::lanes<float>(v);
  return emulated::vector<__m256i, uint16_t>([&](size_t i) { return _cvtss_sh(in[i], 0); });
}

inline __m512 _mm512_maskz_loadu_ps(__mmask16 k, const void* p) {
  return emulated::loaded<__m512, float>(_mm512_setzero_ps(), k, p);
}
inline __m512 _mm512_mask_loadu_ps(__m512 v, __mmask16 k, const void* p) {
  return emulated::loaded<__m512, float>(v, k, p);
}
inline __m512i _mm512_maskz_loadu_epi8(__mmask64 k, const void* p) {
  return emulated::loaded<__m512i, int8_t>(_mm512_setzero_si512(), k, p);
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 k, const void* p) {
  return emulated::loaded<__m256i, int16_t>(_mm256_setzero_si256(), k, p);
}
inline __m128i _mm_maskz_loadu_epi8(__mmask16 k, const void* p) {
  return emulated::loaded<__m128i, int8_t>(_mm_setzero_si128(), k, p);
}
inline void _mm512_mask_storeu_ps(void* p, __mmask16 k, __m512 v) { emulated::stored<float>(p, k, v); }
inline void _mm256_mask_storeu_epi16(void* p, __mmask16 k, __m256i v) { emulated::stored<int16_t>(p, k, v); }

inline __m512i _mm512_maskz_expand_epi8(__mmask64 k, __m512i v) {
  return emulated::expanded<int8_t>(_mm512_setzero_si512(), k, v);
}
inline __m512i _mm512_mask_expand_epi8(__m512i other, __mmask64 k, __m512i v) {
  return emulated::expanded<int8_t>(other, k, v);
}
inline __m512i _mm512_maskz_expand_epi32(__mmask16 k, __m512i v) {
  return emulated::expanded<int32_t>(_mm512_setzero_si512(), k, v);
}

inline float _mm512_reduce_add_ps(__m512 v) {
  return emulated::reduced<float>(v, [](float a, float b) { return a + b; });
}
inline int _mm512_reduce_add_epi32(__m512i v) {
  return emulated::reduced<int32_t>(v, [](int a, int b) { return a + b; });
}
inline float _mm512_reduce_max_ps(__m512 v) {
  return emulated::reduced<float>(v, [](float a, float b) { return a > b ? a : b; });
}

inline __m512i _mm512_shuffle_epi32(__m512i v, int from) {
  const auto in = emulated::lanes<int32_t>(v);
  return emulated::vector<__m512i, int32_t>([&](size_t i) { return in[i / 4 * 4 + (from >> i % 4 * 2 & 3)]; });
}
inline __m512i _mm512_srai_epi32(__m512i v, unsigned by) {
  const auto in = emulated::lanes<int32_t>(v);
  return emulated::vector<__m512i, int32_t>([&](size_t i) { return in[i] >> by; });
}
inline __m256 _mm512_extractf32x8_ps(__m512 v, int half) {
  const auto in = emulated::lanes<float>(v);
  return emulated::vector<__m256, float>([&](size_t i) { return in[i + size_t(8 * half)]; });
}
