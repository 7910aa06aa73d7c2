// Work in phases over the threads of a pool, without going back to the caller between them.
//
// Within a phase, parts go to whoever comes for them. Whoever finishes the last one begins the next phase while the
// others wait for it, fetching what they will read then. Nobody waits for a thread that has not come yet: a busy
// neighbour may hold it, and the ones that are here do all there is.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "kernels/cpu/parallel.h"

namespace edgellm {

constexpr int kMostPhases = 8;
constexpr int kAwake = 4096;  // looks at the counter before a waiting thread offers its core to others

inline void rest() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr size_t kMostRanges = 16;

// Bytes that somebody will read soon.
struct Soon {
  const uint8_t* at;
  int64_t bytes;
};

// work.begin(p) prepares phase p of `phases`, on one thread while no other works, and returns its number of parts (0:
// that was all of it); work.part(p, i) does one. work.soon(p, r, ranges) is what range r of the phase behind p begins
// with; it may be asked while that phase is prepared.
//
// Parts are cut into ranges, a thread's own one first: neighbours in memory are read by one thread, in order, and what
// it fetches ahead is its own.
template <typename Work>
void in_phases(const Pool& pool, int phases, Work& work) {
  struct alignas(64) Counter {
    std::atomic<int64_t> value;
  };
  struct Phase {
    Counter next[kMostRanges], done;
    int64_t parts;
  };
  static const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  static const auto ranges = int64_t(std::min(threads, kMostRanges));
  static thread_local Phase own[kMostPhases];
  Phase* const all = own;  // of the thread that called; the others see it through this
  std::atomic<int> open{0};
  auto begin = [&](int p) {
    while (p < phases && !(all[p].parts = work.begin(p))) ++p;
    if (p < phases) {
      for (int64_t r = 0; r < ranges; ++r) all[p].next[r].value.store(all[p].parts * r / ranges, std::memory_order_relaxed);
      all[p].done.value.store(0, std::memory_order_relaxed);
    }
    open.store(p, std::memory_order_release);
  };
  begin(0);
  auto thread = [&](size_t index) {
    for (int p; (p = open.load(std::memory_order_acquire)) < phases;) {
      Phase& now = all[p];
      const int64_t parts = now.parts;
      int64_t mine = 0;
      for (int64_t k = 0; k < ranges; ++k) {
        const int64_t r = (int64_t(index) + k) % ranges, end = parts * (r + 1) / ranges;
        for (int64_t i; (i = now.next[r].value.fetch_add(1, std::memory_order_relaxed)) < end; ++mine) work.part(p, i);
      }
      if (mine && now.done.value.fetch_add(mine, std::memory_order_acq_rel) + mine == parts) begin(p + 1);
      const auto waiting = [&] { return open.load(std::memory_order_acquire) == p; };
      if (!waiting()) continue;
      const Soon soon = work.soon(p, int64_t(index) % ranges, ranges);
      for (int64_t i = 0; i < soon.bytes && waiting(); i += 64) __builtin_prefetch(soon.at + i, 0, 2);
      for (int looks = 0; waiting(); ++looks) looks < kAwake ? rest() : std::this_thread::yield();
    }
  };
  parallel(pool, threads, thread);
}

}  // namespace edgellm
