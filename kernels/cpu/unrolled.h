// Loops that the compiler must unroll, for kernels whose sums stay in registers.
#pragma once
#include <utility>

namespace edgellm {

// body(0), ..., body(kCount - 1), the index a constant: arrays of sums indexed by it stay in registers, where those that
// a loop runs over are stored each time around.
template <class Body, int... kIndex>
inline void unrolled(std::integer_sequence<int, kIndex...>, Body body) {
  (body(std::integral_constant<int, kIndex>()), ...);
}
template <int kCount, class Body>
inline void unrolled(Body body) {
  unrolled(std::make_integer_sequence<int, kCount>(), body);
}

}  // namespace edgellm
