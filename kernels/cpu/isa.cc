// Chooses the instruction set at run time from the processor's features.
#include "kernels/cpu/isa.h"

#include <atomic>
#include <cstring>

namespace edgellm {
namespace {

bool supported(const Isa& candidate) {
#if defined(__x86_64__)
  if (&candidate == &kAvx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return &candidate == &kPortable;
}

// Best first.
const Isa* const kAll[] = {
#if defined(__x86_64__)
    &kAvx2,
#endif
    &kPortable};

const Isa* best() {
  for (const Isa* candidate : kAll)
    if (supported(*candidate)) return candidate;
  return &kPortable;
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> current{best()};
  return current;
}

}  // namespace

const Isa& isa() { return *chosen().load(std::memory_order_relaxed); }

bool use(const char* name) {
  for (const Isa* candidate : kAll)
    if (!std::strcmp(candidate->name, name) && supported(*candidate)) return chosen() = candidate, true;
  return false;
}

}  // namespace edgellm

extern "C" __attribute__((visibility("default"))) const char* edgellm_instruction_set() {
  return edgellm::isa().name;
}
extern "C" __attribute__((visibility("default"))) int edgellm_use_instruction_set(const char* name) {
  return edgellm::use(name);
}
