// Shuffles by mask byte.
#pragma once
#include <array>
#include <cstdint>

#include "kernels/cpu/avx2/vectors.h"
#include "kernels/cpu/spread.h"

namespace edgellm::EDGELLM_AVX2 {

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
