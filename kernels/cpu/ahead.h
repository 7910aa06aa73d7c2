// What decoding fetches while it reads packed weights, or keys and values: the pages behind those at hand, a little of each
// in turns.
//
// Hardware prefetchers follow a stream to its page's end, so that several pages at once are several streams under way: with
// four, line o of four pages brings line o / 4 of page o % 4 of the next four. These four lines share one address: worked
// out for each line, addresses took as many instructions as the products, which kept the processor from looking far enough
// ahead. Two pages by turns and an address a line read 0.87, 0.93 and 0.77 of the bandwidth (dense 4 and 8 bits, 2:4 with
// 4), four 0.95, 0.99 and 0.92 (an Intel server with AVX-512, two threads, by hand).
//
// Lines at one place in several pages share a set of the first cache. Twelve ways, which Intel's large cores have since Ice
// Lake, have room for four pages at hand and four to come: there AVX2 kernels take 0.78 to 0.99 of the time that they take
// with the next page, line by line (whole tokens of Qwen2.5-Coder-0.5B at 4 and 8 bits and 2:4, and of SmolLM2 as stored,
// on an Intel server, in turns, by hand). Eight ways have not: on two AMD cores (Zen 3) the next page takes 0.91, 0.93 and
// 0.91 of the time of four (SmolLM2 at 4.25 bits, 8 bits, as stored), and fetching a tile's lines at once makes 8 bits 4 to
// 10 % slower. AVX-512 kernels fetch four everywhere; with eight ways (Skylake's, Zen 4's) they were not measured.
#pragma once
#include <algorithm>
#include <cstdint>

namespace edgellm {

constexpr uintptr_t kFetchedLine = 64, kFetchedPage = 4096, kStreams = 4;
constexpr uintptr_t kGroup = kStreams * kFetchedLine, kPages = kStreams * kFetchedPage;

// For the four lines at `from`: one of each of the next four pages. Inlined always: sources of different instruction sets
// must not share one compiled copy. Nothing is read: the pages need not be there.
inline __attribute__((always_inline)) void fetch_group(uintptr_t from) {
  const uintptr_t to = (from / kPages + 1) * kPages + from % kPages / kGroup * kFetchedLine;
  for (uintptr_t page = 0; page < kStreams; ++page)
    __builtin_prefetch(reinterpret_cast<const void*>(to + page * kFetchedPage), 0, 3);
}

// For kBytes read at `at`, to whole groups of four lines; what rounding leaves out the hardware brings.
template <int kBytes>
inline __attribute__((always_inline)) void fetch_four_pages(const uint8_t* at) {
  for (uintptr_t i = 0; i < (kBytes + kGroup / 2) / kGroup; ++i) fetch_group(uintptr_t(at) + i * kGroup);
}

// Whether the first cache has room for four.
extern const bool kFourPages;

// For `bytes` read at `at`, a few lines: the same of the next page.
inline __attribute__((always_inline)) void fetch_next_page(const uint8_t* at, int bytes) {
  for (int i = 0; i < bytes; i += int(kFetchedLine)) __builtin_prefetch(at + kFetchedPage + i, 0, 3);
}

// For turn `turn` of a loop that reads kBytes, a few lines, at `at`: of four pages what some turns read, at the first of
// them, or the same lines of the next page.
template <int kBytes>
inline __attribute__((always_inline)) void fetch_ahead(const uint8_t* at, int turn) {
  constexpr int kTurns = std::max(1, int(kGroup) / kBytes);
  if (!kFourPages) return fetch_next_page(at, kBytes);
  if (turn % kTurns == 0) fetch_four_pages<kTurns * kBytes>(at);
}

// For `bytes` read at `at`, wherever groups begin: each that begins in them.
inline __attribute__((always_inline)) void fetch_four_pages(const void* at, int64_t bytes) {
  const uintptr_t end = uintptr_t(at) + uintptr_t(bytes);
  for (uintptr_t from = (uintptr_t(at) + kGroup - 1) / kGroup * kGroup; from < end; from += kGroup) fetch_group(from);
}

// For `bytes` read at `at`: four pages ahead where there is room, else the next page.
inline __attribute__((always_inline)) void fetch_ahead(const void* at, int64_t bytes) {
  if (kFourPages) return fetch_four_pages(at, bytes);
  fetch_next_page(static_cast<const uint8_t*>(at), int(bytes));
}

}  // namespace edgellm
