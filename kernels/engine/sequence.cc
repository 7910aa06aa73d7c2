#include "kernels/engine/sequence.h"

#include <algorithm>

#include "kernels/engine/error.h"

namespace edgellm {
namespace {

constexpr int64_t kChunk = 256;  // tokens a prefill run, as runtime/loading.py has it: other sums would round otherwise

std::vector<int64_t> larger(std::vector<int64_t> a, const std::vector<int64_t>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] = std::max(a[i], b[i]);
  return a;
}

}  // namespace

CacheLayout layout_of(const Manifest& m, const KVPolicy& policy) {
  return {std::min(kChunk, m.context), m.kv_heads, m.head_dim, policy.planes(), policy.layer_budgets(m.layers), m.kv_int8};
}

Sequence::Sequence(std::unique_ptr<Backend> backend, const Manifest& m, const KVPolicy& policy)
    : policy_(policy), context_(m.context), vocabulary_(m.vocabulary), usual_(layout_of(m, policy)), layout_(usual_),
      cursor_(policy, m.layers), backend_(std::move(backend)) {}

void Sequence::check(const int32_t* ids, size_t count, int64_t before) const {
  if (!count) throw usage_error("the prompt is empty, and the model has no beginning-of-sequence token to start from");
  for (size_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= vocabulary_)
      throw usage_error("token id " + std::to_string(ids[i]) + " is outside the vocabulary of " + std::to_string(vocabulary_));
  const int64_t all = before + int64_t(count);
  if (all <= limit()) return;
  const std::string held = before ? ", " + std::to_string(before) + " of them already in the cache" : "";
  const std::string whose = limit() == context_ ? "the model's context" : "the KV cache (" + policy_.text() + ")";
  throw Error(EDGELLM_CONTEXT, std::to_string(all) + " tokens" + held + "; " + whose + " holds " + std::to_string(limit()),
              before ? "Start a new sequence: edgellm_reset." : "Shorten the prompt, or split it.");
}

const float* Sequence::extend(const int32_t* ids, size_t count, bool keep) {
  check(ids, count, 0);
  const size_t most = keep ? std::min(tokens_.size(), count - 1) : 0;
  const auto common = std::mismatch(tokens_.begin(), tokens_.begin() + int64_t(most), ids).first - tokens_.begin();
  reused_ = cursor_.cut_back(common);
  tokens_.resize(size_t(reused_));
  const float* logits = nullptr;
  const int64_t left = int64_t(count) - reused_;
  make_room(left);
  for (int64_t start = 0; start < left; start += layout_.staging)
    logits = run(ids + reused_ + start, std::min(layout_.staging, left - start));
  cursor_.budgets = cursor_.own_budgets();  // from the next run on, what a whole prompt took is pruned
  return logits;
}

const float* Sequence::step(int32_t id) {
  check(&id, 1, int64_t(tokens_.size()));
  return run(&id, 1);
}

const float* Sequence::run(const int32_t* ids, int64_t count) {
  try {
    cursor_.control(count, control_);
    const float* logits = backend_->run(ids, count, cursor_.fed, control_);
    cursor_.advance(count);
    if (!(layout_ == usual_)) fit(cursor_.budgets);  // a prompt's room is given back once its tokens were pruned
    tokens_.insert(tokens_.end(), ids, ids + count);
    return logits;
  } catch (...) {
    reset();  // some layers may have committed, others not: nothing to continue from
    throw;
  }
}

void Sequence::make_room(int64_t tokens) {
  if (policy_.prefill != "whole") return;
  if (policy_.queries) cursor_.anchor = (cursor_.fed + tokens) % policy_.queries;
  std::vector<int64_t> budgets = cursor_.own_budgets();
  for (size_t i = 0; i < budgets.size(); ++i) budgets[i] = std::max(budgets[i], cursor_.committed[i] + cursor_.staged + tokens);
  if (budgets == cursor_.own_budgets()) return;
  fit(larger(budgets, layout_.budgets));
  cursor_.budgets = budgets;
}

void Sequence::fit(const std::vector<int64_t>& budgets) {
  CacheLayout needed = layout_;
  needed.budgets = larger(budgets, cursor_.places);  // the last run's tokens lie there
  if (needed == layout_) return;
  backend_->resize(needed);
  layout_ = needed;
}

void Sequence::reset() {
  tokens_.clear();
  reused_ = 0;
  cursor_.reset();
}

}  // namespace edgellm
