// Byte shuffles that put kept codes where their mask says: for instruction sets without a byte expand.
#pragma once
#include <array>
#include <cstdint>

namespace edgellm {

// kSpread<from>[mask] moves byte from + j of a register to the place of the mask's j-th set bit; 0x80 leaves zero.
constexpr std::array<uint64_t, 256> spread_table(uint64_t from) {
  std::array<uint64_t, 256> table{};
  for (int mask = 0; mask < 256; ++mask) {
    uint64_t shuffle = 0, next = from;
    for (int bit = 0; bit < 8; ++bit) shuffle |= (mask >> bit & 1 ? next++ : uint64_t(0x80)) << 8 * bit;
    table[size_t(mask)] = shuffle;
  }
  return table;
}
template <int kFrom>
inline constexpr std::array<uint64_t, 256> kSpread = spread_table(kFrom);

}  // namespace edgellm
