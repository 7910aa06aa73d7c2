// A loop that is written out: with a loop proper, compilers keep arrays of vectors in memory.
#pragma once
#include <utility>

namespace edgellm::neon {
namespace {

template <class Each, int... kIndex>
inline void repeat_all(Each each, std::integer_sequence<int, kIndex...>) {
  (each(kIndex), ...);
}
// each(0) to each(kCount - 1), in this order.
template <int kCount, class Each>
inline void repeat(Each each) {
  repeat_all(each, std::make_integer_sequence<int, kCount>());
}

}  // namespace
}  // namespace edgellm::neon
