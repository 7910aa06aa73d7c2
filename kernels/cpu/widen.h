// Unpacked weights as floats. Plain loops: every instruction set's file includes them, and compiles them for itself.
#pragma once
#include <cstring>

#include "kernels/layout.h"

namespace edgellm {
namespace {

// The four int8 of every output in a quad as lanes of 32 bits, so that one of them is had by two shifts.
template <class Value>
inline void columns(const int8_t* weight, const int8_t* kept, int quads, float* w, int step, Value value) {
  const auto byte = [](const int8_t* four, int i) {
    uint32_t lane;
    std::memcpy(&lane, four, 4);
    return float(int32_t(lane << (24 - 8 * i)) >> 24);
  };
  for (int quad = 0; quad < quads; ++quad, weight += kPanel * 4, kept += kPanel * 4)
    for (int i = 0; i < 4; ++i, w += step)
      for (int out = 0; out < kPanel; ++out) w[out] = value(out, byte(weight + out * 4, i), byte(kept + out * 4, i));
}

template <class Value>
inline void rows(const int8_t* weight, const int8_t* kept, int quads, float* w, int step, Value value) {
  for (int quad = 0; quad < quads; ++quad, weight += kPanel * 4, kept += kPanel * 4, w += 4)
    for (int out = 0; out < kPanel; ++out)
      for (int i = 0; i < 4; ++i) w[out * step + i] = value(out, float(weight[out * 4 + i]), float(kept[out * 4 + i]));
}

// See Isa::widen_columns, Isa::widen_rows.
template <bool kColumns>
void to_floats(const int8_t* weight, const int8_t* kept, int quads, const float* scale, const float* minimum, float* w, int step) {
  const auto all = [&](auto value) {
    if constexpr (kColumns)
      columns(weight, kept ? kept : weight, quads, w, step, value);
    else
      rows(weight, kept ? kept : weight, quads, w, step, value);
  };
  if (!minimum) return all([=](int out, float code, float) { return scale[out] * code; });
  if (!kept) return all([=](int out, float code, float) { return scale[out] * code + minimum[out]; });
  all([=](int out, float code, float there) { return scale[out] * code + minimum[out] * there; });
}

}  // namespace
}  // namespace edgellm
