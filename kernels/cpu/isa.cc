// Chooses the instruction set at run time from the processor's features.
#include "kernels/cpu/isa.h"

#include <atomic>
#include <cstring>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace edgellm {
namespace {

bool supported(const Isa& candidate) {
#if defined(__x86_64__)
  if (&candidate == &kAvx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#elif defined(__aarch64__)
  constexpr unsigned long kDotprod = 1 << 20, kI8mm = 1 << 13;  // HWCAP_ASIMDDP; HWCAP2_I8MM, which old headers lack
  const bool dotprod = getauxval(AT_HWCAP) & kDotprod;
  if (&candidate == &kNeonDotprod) return dotprod;
  if (&candidate == &kNeonI8mm) return dotprod && getauxval(AT_HWCAP2) & kI8mm;
#endif
  return &candidate == &kPortable;
}

// Best first.
const Isa* const kAll[] = {
#if defined(__x86_64__)
    &kAvx2,
#elif defined(__aarch64__)
    &kNeonI8mm, &kNeonDotprod,
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
