// What attention fetches while it reads keys or values: what it will read next.
//
// Keys and values are computed with for about as long as they take to come from memory, and the bursts in which prefetchers
// of hardware bring them leave both waiting for one another. So what comes next, values while their keys are read and keys
// while the values before them are, is fetched evenly, a line at every step; from both halves of it in turns, which are
// two pages (ahead.h), and into the second cache, whose misses more of are under way at once.
#pragma once
#include <cstdint>

namespace edgellm {

// Passed by value, in two registers. Inlined always: sources of different instruction sets must not share one compiled copy.
struct Meanwhile {
  const char* at;
  int32_t half, step;  // bytes

  // `bytes` at `next`, fetched in so many steps; next may be null: nothing is.
  __attribute__((always_inline)) Meanwhile(const void* next, int64_t bytes, int64_t steps)
      : at(static_cast<const char*>(next)), half(next ? int32_t(bytes / 2) : 0), step(steps ? int32_t((half + steps - 1) / steps) : 0) {}

  // The i-th step.
  __attribute__((always_inline)) void fetch(int64_t i) const {
    for (int32_t b = 0; b < step; b += 64) {
      __builtin_prefetch(at + i * step + b, 0, 2);
      __builtin_prefetch(at + i * step + b + half, 0, 2);
    }
  }
};

}  // namespace edgellm
