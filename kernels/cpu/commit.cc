#include "kernels/cpu/commit.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace edgellm {
namespace {

// A token that may go.
struct Candidate {
  float importance;
  int32_t position;
  int64_t slot;

  bool operator<(const Candidate& other) const {
    return importance != other.importance ? importance < other.importance : position < other.position;
  }
};

// One KV head's tokens before the commit, in order: slots [0, committed), then [staged, staged + accepted).
struct Head {
  const KVCache& cache;
  const Control& c;
  int64_t head;

  int64_t count() const { return c.committed + c.accepted; }
  int64_t slot(int64_t i) const { return i < c.committed ? i : c.staged + i - c.committed; }
  int32_t position(int64_t slot) const { return cache.position[head * cache.capacity + slot]; }

  // NaN, which no order has a place for, goes first.
  float importance(int64_t slot) const {
    if (c.policy == kWindow) return float(position(slot));
    const float* score = cache.scores(head, slot);
    float found = c.queries ? score[kAttention] + score[kOlder] : score[kAttention];
    if (c.norm) found *= score[kNorm];
    return std::isnan(found) ? -std::numeric_limits<float>::infinity() : found;
  }

  int32_t newest() const {
    int32_t found = -1;
    for (int64_t i = 0; i < count(); ++i) found = std::max(found, position(slot(i)));
    return found;
  }

  // seen(candidate) for every token that may go.
  template <typename Body>
  void candidates(Body seen) const {
    const int64_t last = newest() - (c.policy == kWindow ? 0 : c.recent);
    for (int64_t i = 0; i < count(); ++i) {
      const int64_t at = slot(i);
      const int32_t place = position(at);
      if (place >= c.sinks && place <= last) seen(Candidate{importance(at), place, at});
    }
  }

  void move(int64_t from, int64_t to, int64_t head_dim) const {
    const int64_t source = head * cache.capacity + from, target = head * cache.capacity + to;
    for (uint16_t* buffer : {cache.key, cache.value})
      std::memcpy(buffer + target * head_dim, buffer + source * head_dim, size_t(head_dim) * 2);
    cache.position[target] = cache.position[source];
    for (int64_t plane = 0; plane < cache.planes; ++plane)
      cache.score[target * cache.planes + plane] = cache.score[source * cache.planes + plane];
  }
};

// Decoding: one token came, one goes.
void commit_one(const Head& tokens, int64_t head_dim) {
  Candidate least{std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max(), tokens.c.staged};
  tokens.candidates([&](const Candidate& one) { least = std::min(least, one); });
  if (least.slot != tokens.c.staged) tokens.move(tokens.c.staged, least.slot, head_dim);
}

void commit_many(const Head& tokens, int64_t head_dim) {
  const Control& c = tokens.c;
  static thread_local std::vector<Candidate> found;
  static thread_local std::vector<uint8_t> gone;  // by slot
  found.clear();
  gone.assign(size_t(tokens.cache.capacity), 0);
  tokens.candidates([](const Candidate& one) { found.push_back(one); });
  const auto excess = std::min<ptrdiff_t>(tokens.count() - c.budget, ptrdiff_t(found.size()));
  if (excess < ptrdiff_t(found.size())) std::nth_element(found.begin(), found.begin() + excess, found.end());
  for (auto one = found.begin(); one < found.begin() + excess; ++one) gone[size_t(one->slot)] = 1;
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
