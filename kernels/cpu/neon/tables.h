// Shuffles by mask byte.
#pragma once
#include <array>
#include <cstdint>

#include "kernels/cpu/spread.h"

namespace edgellm::neon {

// Byte j of kGather[mask] is the place of the mask's j-th set bit, j < 4.
constexpr std::array<uint32_t, 256> gather_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t mask = 0; mask < 256; ++mask)
    for (uint32_t bit = 0, next = 0; bit < 8 && next < 4; ++bit)
      if (mask >> bit & 1) table[mask] |= bit << 8 * next++;
  return table;
}
inline constexpr std::array<uint32_t, 256> kGather = gather_table();

}  // namespace edgellm::neon
