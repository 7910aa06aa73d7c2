// What decoding fetches while it reads packed weights: for every line read, one of the two pages behind those at hand.
//
// Hardware prefetchers follow a stream to its page's end. Lines come from both pages in turns, so that two streams are
// under way: line o of a pair of pages brings line o / 2 of page o % 2 of the next pair. On an Intel server
// Qwen2.5-Coder-0.5B decoded 1.09x as fast with it as with one stream 6 KB ahead, which was 1.05x as fast as 2 KB ahead
// (by hand).
#pragma once
#include <cstdint>

namespace edgellm {

// Inlined always: sources of different instruction sets must not share one compiled copy.
inline __attribute__((always_inline)) const char* ahead_of(const uint8_t* at) {
  constexpr uintptr_t kLine = 64, kPages = 8192, kLines = 64;  // bytes, bytes, lines of a page
  const uintptr_t line = uintptr_t(at) % kPages / kLine, pair = uintptr_t(at) / kPages + 1;
  return reinterpret_cast<const char*>(pair * kPages + (line % 2 * kLines + line / 2) * kLine);
}

}  // namespace edgellm
