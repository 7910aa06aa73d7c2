// Byte shuffles by mask byte.
#pragma once
#include <array>
#include <cstdint>

#include "kernels/cpu/avx2/vectors.h"

namespace edgellm::EDGELLM_AVX2 {

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

// kGather[mask] picks, of eight activations in the order of kPlace, those of the mask's first four set bits.
constexpr std::array<uint64_t, 256> gather_table() {
  std::array<uint64_t, 256> table{};
  for (int mask = 0; mask < 256; ++mask) {
    uint64_t shuffle = 0;
    for (int bit = 0, next = 0; bit < 8 && next < 4; ++bit)
      if (mask >> bit & 1) {
        const uint64_t byte = uint64_t(2 * (bit / 4 * 4 + kPlace[bit % 4]));
        shuffle |= (byte | (byte + 1) << 8) << 16 * next++;
      }
    table[size_t(mask)] = shuffle;
  }
  return table;
}
inline constexpr std::array<uint64_t, 256> kGather = gather_table();

}  // namespace edgellm::EDGELLM_AVX2
