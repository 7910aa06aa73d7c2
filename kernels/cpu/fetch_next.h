// What attention fetches while it reads keys or values of the cache: what it will read next.
//
// Computing with a block takes about as long as reading the next one from memory. Left to the hardware's prefetchers, or
// fetched in bursts, they hardly overlap. So values are fetched while their keys are read, and the next keys while those
// values are, a little at every step: one line of either half in turns (ahead.h), into the second cache. On two cores of
// an Intel server, of the bandwidth: 0.72 where it was 0.66, 64 dimensions, halves, 1,900 slots (by hand).
#pragma once
#include <cstdint>

namespace edgellm {

// Passed by value, in two registers. Inlined always: sources of different instruction sets must not share one copy.
struct FetchNext {
  const char* at;
  int32_t half, step;  // bytes: of each half, and what a step fetches of it

  // `bytes` at `next`, in `steps` equal steps. Null, or no steps: nothing is fetched. Nothing is read: `next` may lie, or
  // reach, where nothing is.
  __attribute__((always_inline)) FetchNext(const void* next, int64_t bytes, int64_t steps)
      : at(static_cast<const char*>(next)),
        half(next ? int32_t(bytes / 2) : 0),
        step(steps ? int32_t((half + steps - 1) / steps) : 0) {}

  // Step i of them.
  __attribute__((always_inline)) void fetch(int64_t i) const {
    for (int32_t b = 0; b < step; b += 64) {
      __builtin_prefetch(at + i * step + b, 0, 2);
      __builtin_prefetch(at + i * step + b + half, 0, 2);
    }
  }
};

}  // namespace edgellm
