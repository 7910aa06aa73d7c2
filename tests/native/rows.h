// What an instruction set's kernels of attention and of half precision owe: rows get the same bits alone as among
// others and are near what the portable path gives; halves are rounded as there.
#pragma once
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cpu/isa.h"

namespace edgellm {

inline std::vector<float> normals(int n) {
  static std::mt19937 random(0);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& one : values) one = normal(random);
  return values;
}

inline bool near(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) <= 1e-4f)) return false;
  return true;
}
inline bool same(const float* a, const float* b, int n) { return !std::memcmp(a, b, size_t(n) * sizeof *a); }

constexpr int kSlots = 13, kMostRows = 11;

inline bool scores_agree() {
  for (const int dim : {1, 6, 16, 24, 36, 64, 128}) {
    const auto q = normals(kMostRows * dim), key = normals(kSlots * dim);
    for (int rows = 1; rows <= kMostRows; ++rows) {
      std::vector<float> s(size_t(rows * kSlots)), expected(s.size()), one(kSlots);
      isa().scores(q.data(), rows, key.data(), kSlots, dim, s.data(), kSlots);
      kPortable.scores(q.data(), rows, key.data(), kSlots, dim, expected.data(), kSlots);
      if (!near(s, expected)) return false;
      for (int row = 0; row < rows; ++row) {
        isa().scores(&q[size_t(row * dim)], 1, key.data(), kSlots, dim, one.data(), kSlots);
        if (!same(one.data(), &s[size_t(row * kSlots)], kSlots)) return false;
      }
    }
  }
  return true;
}

inline bool mix_agrees() {
  for (const int dim : {1, 6, 16, 24, 36, 64, 80, 128}) {
    const auto p = normals(kMostRows * kSlots), value = normals(kSlots * dim);
    for (int rows = 1; rows <= kMostRows; ++rows) {
      std::vector<float> y(size_t(rows * dim), 1.0f), expected = y;
      isa().mix(p.data(), kSlots, rows, value.data(), kSlots, dim, y.data());
      kPortable.mix(p.data(), kSlots, rows, value.data(), kSlots, dim, expected.data());
      if (!near(y, expected)) return false;
      for (int row = 0; row < rows; ++row) {
        std::vector<float> one(size_t(dim), 1.0f);
        isa().mix(&p[size_t(row * kSlots)], kSlots, 1, value.data(), kSlots, dim, one.data());
        if (!same(one.data(), &y[size_t(row * dim)], dim)) return false;
      }
    }
  }
  return true;
}

// Halves, and codes, give the bits that the same numbers give once they are widened.
inline bool narrow_attend_alike() {
  for (const int dim : {1, 6, 24, 36, 64, 80}) {
    const auto q = normals(kMostRows * dim), p = normals(kMostRows * kSlots), drawn = normals(kSlots * dim);
    std::vector<uint16_t> half(drawn.size());
    std::vector<float> wide(drawn.size()), wide_codes(drawn.size());
    isa().to_half(drawn.data(), half.data(), int(half.size()));
    isa().from_half(half.data(), wide.data(), int(half.size()));
    std::vector<int8_t> code(size_t(kSlots * pitch<int8_t>(dim)));
    for (size_t i = 0; i < code.size(); ++i) code[i] = int8_t(127 - 37 * i % 255);
    for (int j = 0; j < kSlots; ++j) isa().from_int8(&code[size_t(j * pitch<int8_t>(dim))], &wide_codes[size_t(j * dim)], dim);
    for (int i = 0; i < kSlots * dim; ++i)
      if (wide_codes[size_t(i)] != code[size_t(i / dim * pitch<int8_t>(dim) + i % dim)]) return false;
    for (int rows = 1; rows <= kMostRows; ++rows) {
      std::vector<float> s(size_t(rows * kSlots)), t(s), y(size_t(rows * dim), 1.0f), z(y);
      isa().scores(q.data(), rows, wide.data(), kSlots, dim, s.data(), kSlots);
      isa().scores_half(q.data(), rows, half.data(), kSlots, dim, t.data(), kSlots);
      isa().mix(p.data(), kSlots, rows, wide.data(), kSlots, dim, y.data());
      isa().mix_half(p.data(), kSlots, rows, half.data(), kSlots, dim, z.data());
      if (s != t || y != z) return false;
      isa().scores(q.data(), rows, wide_codes.data(), kSlots, dim, s.data(), kSlots);
      isa().scores_int8(q.data(), rows, code.data(), kSlots, dim, t.data(), kSlots);
      isa().mix(p.data(), kSlots, rows, wide_codes.data(), kSlots, dim, y.data());
      isa().mix_int8(p.data(), kSlots, rows, code.data(), kSlots, dim, z.data());
      if (s != t || y != z) return false;
    }
  }
  return true;
}

// Every half there and back, and floats between two halves.
inline bool halves_agree() {
  std::vector<uint16_t> halves;
  for (int i = 0; i < 1 << 16; ++i)
    if ((i & 0x7c00) != 0x7c00 || !(i & 0x3ff)) halves.push_back(uint16_t(i));  // no NaN: its bits are free
  const int n = int(halves.size()) - 1;                                         // not a multiple of a vector
  std::vector<float> floats(halves.size()), expected(floats);
  isa().from_half(halves.data(), floats.data(), n);
  kPortable.from_half(halves.data(), expected.data(), n);
  if (!same(floats.data(), expected.data(), n)) return false;
  for (float by : {1.0f, 1 + 0x1p-11f, 1 + 0x1p-12f, 1.0002f, 1.0007f}) {
    std::vector<float> x(floats);
    for (float& one : x) one *= by;
    std::vector<uint16_t> got(halves.size()), right(halves.size());
    isa().to_half(x.data(), got.data(), n);
    kPortable.to_half(x.data(), right.data(), n);
    if (got != right) return false;
  }
  return true;
}

}  // namespace edgellm
