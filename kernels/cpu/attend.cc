// Attention of a run: few queries as parts of the cache (few_queries.cc), many as rows of tokens, a task each.
#include "kernels/cpu/attend.h"

#include <optional>
#include <vector>

#include "kernels/cpu/attention_task.h"
#include "kernels/cpu/few_queries.h"

namespace edgellm {
namespace {

constexpr int64_t kRows = 96;         // query rows (tokens times heads of a group) a task of prefill
constexpr int64_t kInline = 1 << 16;  // multiplications that are not worth waking a thread for

}  // namespace

void attend(const Attention& a, const Control& control, const KVCache& cache, const Seen& seen, const Tokens& tokens,
            float* y, const Pool& pool) {
  const int64_t dim = a.head_dim, group = a.heads / a.kv_heads, per_task = std::max<int64_t>(1, kRows / group);
  const int64_t runs = (seen.steps + per_task - 1) / per_task, slots = seen.slots();
  const bool small = a.heads * seen.steps * slots * dim < kInline;
  if (runs == 1) {
    static thread_local FewQueries few;  // grows to the longest context once, then stays
    FewQueries& queries = few;
    const int64_t parts = queries.begin(a, control, cache, seen, tokens);
    auto one = [&](size_t i) { queries.part(int64_t(i)); };
    for (int64_t i = 0; small && i < parts; ++i) one(size_t(i));
    if (!small) parallel(pool, size_t(parts), one);
    queries.end(y);
    return;
  }
  const std::optional<Votes> votes = Votes::of(control, tokens.positions, group);
  std::vector<std::vector<float>> sums(size_t(votes ? a.kv_heads * runs : 0));
  auto one = [&](size_t i) {
    const int64_t head = int64_t(i) / runs, first = int64_t(i) % runs * per_task;
    const Task t{a, cache, seen, tokens, head, first, std::min(per_task, seen.steps - first), head * group, group};
    std::vector<float> q(size_t(t.rows() * dim));
    t.rotate(q.data());
    Partial sum(t.rows(), dim);
    static thread_local Paid kept;  // grows to the longest context once, then stays
    Paid* paid = votes && votes->any(t.first, t.tokens) ? &kept : nullptr;
    if (paid) paid->clear(t.rows(), 0, t.last());
    for (int64_t begin = 0; begin < t.last(); begin += kSegment) {
      Partial part(t.rows(), dim);
      t.segment(q.data(), begin, std::min(begin + kSegment, t.last()), begin ? part : sum, paid, isa());
      if (begin) sum.merge(part, dim);
    }
    t.write(sum, y);
    if (!paid) return;
    sums[i].assign(size_t(votes->sums() * slots), 0);
    paid->add(*votes, t.first, t.width, sum, sums[i].data(), slots);
  };
  parallel(pool, size_t(a.kv_heads * runs), one);
  for (int64_t head = 0; votes && head < a.kv_heads; ++head) votes->settle(cache, seen, head, &sums[size_t(head * runs)], runs);
}

}  // namespace edgellm
