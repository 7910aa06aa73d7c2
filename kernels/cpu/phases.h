// Work in phases over the threads of a pool, without going back to the caller between them.
//
// Within a phase, parts go to whoever comes for one. Whoever finishes its last part begins the next phase while the
// others wait for it. Nobody waits for a thread that has not come yet: a busy neighbour may hold it, and the ones that are
// here do all there is.
#pragma once
#include <atomic>
#include <thread>

#include "kernels/cpu/parallel.h"

namespace edgellm {

constexpr int kMostPhases = 8;
constexpr int kAwake = 4096;  // looks at the counter, some 50 us, before a waiting thread offers its core to others

inline void rest() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// work.begin(p) prepares phase p of `phases`, on one thread while no other works, and returns its number of parts (0:
// that was all of it); work.part(p, i) does one.
template <typename Work>
void in_phases(const Pool& pool, int phases, Work& work) {
  struct alignas(64) Phase {
    std::atomic<int64_t> next{0}, done{0};
    int64_t parts = 0;
  };
  static const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  Phase all[kMostPhases];
  std::atomic<int> open{0};
  auto begin = [&](int p) {
    while (p < phases && !(all[p].parts = work.begin(p))) ++p;
    open.store(p, std::memory_order_release);
  };
  begin(0);
  auto thread = [&](size_t) {
    for (int p; (p = open.load(std::memory_order_acquire)) < phases;) {
      Phase& now = all[p];
      for (int64_t i; (i = now.next.fetch_add(1, std::memory_order_relaxed)) < now.parts;) {
        work.part(p, i);
        if (now.done.fetch_add(1, std::memory_order_acq_rel) + 1 == now.parts) begin(p + 1);
      }
      for (int looks = 0; open.load(std::memory_order_acquire) == p; ++looks)
        looks < kAwake ? rest() : std::this_thread::yield();
    }
  };
  parallel(pool, threads, thread);
}

}  // namespace edgellm
