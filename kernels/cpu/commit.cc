#include "kernels/cpu/commit.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/isa.h"

namespace edgellm {
namespace {

constexpr float kFirst = std::numeric_limits<float>::infinity(), kStays = -kFirst;

// One KV head's tokens before the commit, in order: slots [0, committed), then [staged, staged + accepted).
struct Head {
  const KVCache& cache;
  const Control& c;
  int64_t head;

  int64_t count() const { return c.committed + c.accepted; }
  int64_t slot(int64_t i) const { return i < c.committed ? i : c.staged + i - c.committed; }
  const int32_t* positions() const { return cache.position + head * cache.capacity; }
  int32_t position(int64_t i) const { return positions()[slot(i)]; }

  // How readily every token goes, [count]: its importance, negated; kStays for sinks and recent ones. NaN, which no order
  // has a place for, goes first.
  const std::vector<float>& readiness() const {
    static thread_local std::vector<float> ready;
    ready.resize(size_t(count()));
    const int64_t parts[2][3] = {{0, 0, c.committed}, {c.committed, c.staged, c.accepted}};
    for (const auto& [at, from, n] : parts) {
      const int32_t* position = positions() + from;
      float* to = ready.data() + at;
      if (c.policy == kWindow)
        for (int64_t i = 0; i < n; ++i) to[i] = -float(position[i]);
      else
        by_score(cache.scores(head, from), n, to);
    }
    const int32_t last = newest() - int32_t(c.policy == kWindow ? 0 : c.recent), sinks = int32_t(c.sinks);
    for (const auto& [at, from, n] : parts) {
      const int32_t* position = positions() + from;
      float* to = ready.data() + at;
      for (int64_t i = 0; i < n; ++i) to[i] = position[i] < sinks || position[i] > last ? kStays : to[i];
    }
    return ready;
  }

  void move(int64_t from, int64_t to, int64_t head_dim) const {
    const int64_t source = head * cache.capacity + from, target = head * cache.capacity + to;
    for (void* buffer : {cache.key, cache.value})
      std::memcpy(cache.row(buffer, head, to, head_dim), cache.row(buffer, head, from, head_dim), size_t(cache.row_bytes(head_dim)));
    cache.position[target] = cache.position[source];
    for (int64_t plane = 0; plane < cache.planes; ++plane)
      cache.score[target * cache.planes + plane] = cache.score[source * cache.planes + plane];
  }

 private:
  void by_score(const float* score, int64_t n, float* to) const {
    for (int64_t i = 0; i < n; ++i, score += cache.planes) {
      float found = c.queries ? score[kAttention] + score[kOlder] : score[kAttention];
      if (c.norm) found *= score[kNorm];
      to[i] = found == found ? -found : kFirst;
    }
  }

  int32_t newest() const {
    int32_t found = -1;
    for (int64_t i = 0; i < c.committed; ++i) found = std::max(found, positions()[i]);
    for (int64_t i = c.committed; i < count(); ++i) found = std::max(found, position(i));
    return found;
  }
};

// Decoding: one token came, one goes.
void commit_one(const Head& tokens, int64_t head_dim) {
  const std::vector<float>& ready = tokens.readiness();
  const float most = isa().largest(ready.data(), int(ready.size()));
  int64_t goes = tokens.count() - 1;
  for (int64_t i = 0; i < tokens.count(); ++i)
    if (ready[size_t(i)] == most && tokens.position(i) < tokens.position(goes)) goes = i;
  if (tokens.slot(goes) != tokens.c.staged) tokens.move(tokens.c.staged, tokens.slot(goes), head_dim);
}

void commit_many(const Head& tokens, int64_t head_dim) {
  const Control& c = tokens.c;
  static thread_local std::vector<int64_t> order;
  static thread_local std::vector<uint8_t> gone;  // by slot
  const std::vector<float>& ready = tokens.readiness();
  order.clear();
  for (int64_t i = 0; i < tokens.count(); ++i)
    if (ready[size_t(i)] != kStays) order.push_back(i);
  const auto sooner = [&](int64_t a, int64_t b) {
    const float x = ready[size_t(a)], y = ready[size_t(b)];
    return x != y ? x > y : tokens.position(a) < tokens.position(b);
  };
  const auto excess = std::min<ptrdiff_t>(tokens.count() - c.budget, ptrdiff_t(order.size()));
  if (excess < ptrdiff_t(order.size())) std::nth_element(order.begin(), order.begin() + excess, order.end(), sooner);
  gone.assign(size_t(tokens.cache.capacity), 0);
  for (auto i = order.begin(); i < order.begin() + excess; ++i) gone[size_t(tokens.slot(*i))] = 1;
  int64_t hole = 0;
  for (int64_t i = 0; i < tokens.count(); ++i) {
    const int64_t at = tokens.slot(i);
    if (at < c.budget || gone[size_t(at)]) continue;
    while (hole < c.committed && !gone[size_t(hole)]) ++hole;
    tokens.move(at, hole++, head_dim);
  }
}

}  // namespace

const char* commit_problem(const Control& c) {
  const int64_t tokens = c.committed + c.accepted;
  if (c.policy == kFull && tokens > c.budget) return "the cache is full";
  if (tokens > c.budget && c.staged < c.budget) return "what was staged lies in the budget";
  if (c.policy == kWindow && c.sinks >= c.budget) return "sinks fill the whole budget";
  if (c.policy == kScore && c.sinks + c.recent > c.budget) return "sinks and recent tokens exceed the budget";
  return nullptr;
}

void commit(const KVCache& cache, const Control& c, int64_t head, int64_t head_dim) {
  const Head tokens{cache, c, head};
  if (tokens.count() <= c.budget)
    for (int64_t i = c.committed; i < tokens.count(); ++i) tokens.move(tokens.slot(i), i, head_dim);
  else if (c.committed == c.budget && c.accepted == 1)
    commit_one(tokens, head_dim);
  else
    commit_many(tokens, head_dim);
}

}  // namespace edgellm
