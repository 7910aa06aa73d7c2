// Loops that the compiler must unroll, for kernels whose sums stay in registers.
#pragma once
#include <utility>

namespace edgellm {

// body(0), ..., body(kCount - 1), the index a constant: arrays of sums indexed by it stay in registers, where those that
// a loop runs over are stored each time around. A body that is not inlined keeps them in memory all the same: GCC stops
// inlining long before sixteen quads, unless told.
#define EDGELLM_INLINED __attribute__((always_inline))

template <class Body, int... kIndex>
EDGELLM_INLINED inline void unrolled(std::integer_sequence<int, kIndex...>, Body body) {
  (body(std::integral_constant<int, kIndex>()), ...);
}
template <int kCount, class Body>
EDGELLM_INLINED inline void unrolled(Body body) {
  unrolled(std::make_integer_sequence<int, kCount>(), body);
}

}  // namespace edgellm
