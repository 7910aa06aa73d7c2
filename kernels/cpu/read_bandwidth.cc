// Reads memory and does as little else as can be: what `edgellm bench` holds decoding against.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr size_t kPage = 4096, kStreams = 4, kLine = 64;

// Four pages side by side: prefetchers follow a stream to its page's end, and four of them keep more lines under way
// than one (a sixth more, measured). T: a vector of words that is one register of the target.
template <typename T>
inline __attribute__((always_inline)) uint64_t sum(const unsigned char* at, size_t n) {
  const unsigned char* end = at + n;
  T sums[kStreams] = {};
  for (; size_t(end - at) >= kStreams * kPage; at += kStreams * kPage)
    for (size_t line = 0; line < kPage; line += kLine)
      for (size_t s = 0; s < kStreams; ++s)
        for (size_t i = 0; i < kLine; i += sizeof(T)) sums[s] += *reinterpret_cast<const T*>(at + s * kPage + line + i);
  uint64_t total = 0;
  for (const T& words : sums)
    for (size_t i = 0; i < sizeof(T) / sizeof total; ++i) total += words[i];
  for (; size_t(end - at) >= sizeof total; at += sizeof total) {
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    total += word;
  }
  for (; at != end; ++at) total += *at;
  return total;
}

typedef uint64_t Narrow __attribute__((vector_size(16), aligned(1), may_alias));
#if defined(__x86_64__)
typedef uint64_t Wide __attribute__((vector_size(32), aligned(1), may_alias));
__attribute__((target("avx2"))) uint64_t sum_avx2(const unsigned char* at, size_t n) { return sum<Wide>(at, n); }
#endif

}  // namespace

// The sum modulo 2^64 of n bytes at `from` taken as 64-bit words, and of the n % 8 bytes behind the last whole word.
extern "C" __attribute__((visibility("default"))) uint64_t edgellm_read_bytes(const void* from, size_t n) {
  const auto* at = static_cast<const unsigned char*>(from);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return sum_avx2(at, n);
#endif
  return sum<Narrow>(at, n);
}
