// Chooses the instruction set at run time from the processor's features.
#include "kernels/cpu/isa.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace edgellm {
namespace {

#if defined(__x86_64__)
// The compiler's own test counts a feature only where the operating system saves its registers.
bool avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

bool avx_vnni() {  // a name that not every compiler knows: leaf 7.1, EAX bit 4
  uint32_t a, b, c, d;
  return avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool avx512() {
  return avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool avx512_vnni() {
  return avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2");
}
#elif defined(__aarch64__)
// HWCAP_ASIMDDP; HWCAP2_I8MM, which old headers lack
bool dotprod() { return getauxval(AT_HWCAP) & 1 << 20; }
bool i8mm() { return dotprod() && getauxval(AT_HWCAP2) & 1 << 13; }
#endif

struct Candidate {
  const Isa& isa;
  bool (*supported)();
};

// Best first.
const Candidate kAll[] = {
#if defined(__x86_64__)
    {kAvx512Vnni, avx512_vnni}, {kAvx512, avx512}, {kAvxVnni, avx_vnni}, {kAvx2, avx2},
#elif defined(__aarch64__)
    {kNeonI8mm, i8mm}, {kNeonDotprod, dotprod},
#endif
    {kPortable, [] { return true; }}};

#if defined(EDGELLM_EMULATED)
bool runs(const Candidate&) { return true; }  // tests run kernels that this processor lacks
#else
bool runs(const Candidate& candidate) { return candidate.supported(); }
#endif

const Isa* best() {
  for (const Candidate& candidate : kAll)
    if (runs(candidate)) return &candidate.isa;
  return &kPortable;
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> current{best()};
  return current;
}

}  // namespace

const Isa& isa() { return *chosen().load(std::memory_order_relaxed); }

bool use(const char* name) {
  for (const Candidate& candidate : kAll)
    if (!std::strcmp(candidate.isa.name, name) && runs(candidate)) return chosen() = &candidate.isa, true;
  return false;
}

}  // namespace edgellm

extern "C" __attribute__((visibility("default"))) const char* edgellm_instruction_set() {
  return edgellm::isa().name;
}
extern "C" __attribute__((visibility("default"))) int edgellm_use_instruction_set(const char* name) {
  return edgellm::use(name);
}
