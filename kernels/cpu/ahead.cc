// How many pages this processor's first cache has room to fetch ahead.
#include "kernels/cpu/ahead.h"

#include <unistd.h>

namespace edgellm {
namespace {

constexpr long kWaysForFour = 12;

bool room_for_four() {
#ifdef _SC_LEVEL1_DCACHE_ASSOC  // glibc's; 0 where the processor does not tell
  return sysconf(_SC_LEVEL1_DCACHE_ASSOC) >= kWaysForFour;
#else
  return false;
#endif
}

}  // namespace

const bool kFourPages = room_for_four();

}  // namespace edgellm
