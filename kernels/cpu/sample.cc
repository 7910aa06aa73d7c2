// The next token: greedy, or drawn after repetition penalty, temperature, top-k, top-p and min-p, in transformers' order.
//
// One pass finds the largest score of every block; what comes after looks only into blocks that can matter. A top-p or
// unfiltered draw needs the sum over all: it is taken of float32 exponentials, and again of float64 ones where the
// outcome lies within their error of another.
#include "kernels/cpu/sample.h"

#include <functional>
#include <vector>

#include "kernels/cpu/logits.h"
#include "kernels/cpu/select.h"

namespace edgellm {
namespace {

// A thread's room for all its draws. most, block: of every block its largest score, and its weight or a copy of that.
struct Scratch {
  std::vector<double> most, block;
  std::vector<Token> tokens;
};
thread_local Scratch scratch;

struct Draw {
  const Scores& scores;
  const Sampling& how;
  double top, uniform;
  std::vector<Token>& tokens = scratch.tokens;  // those that may still be drawn

  // Relative to the largest before dividing: a tiny temperature must not overflow.
  double weight(double score) const { return std::exp((score - top) / how.temperature); }
  double score_of(double weight) const { return top + how.temperature * std::log(weight); }

  // Takes the tokens with a score of at least `bar`, in the order of their ids, from blocks [b, last).
  void gather(double bar, int64_t b, int64_t last) {
    tokens.clear();
    for (double score[kBlock]; b < last; ++b) {
      if (scratch.most[b] < bar) continue;
      scores.load(b, score);
      for (int i = 0; i < scores.count(b); ++i)
        if (score[i] >= bar) tokens.push_back({score[i], b * kBlock + i});
    }
  }

  void weigh() {
    for (Token& token : tokens) token.weight = weight(token.weight);
  }

  double block_weight(int64_t b, bool exact) const {
    double score[kBlock], sum = 0;
    scores.load(b, score);
    const int n = scores.count(b);
    if (exact) {
      for (int i = 0; i < n; ++i) sum += weight(score[i]);
      return sum;
    }
    const double inverse = std::min(1 / how.temperature, 1e300);  // 0 times it must not be NaN
    alignas(64) float d[kBlock], e[kBlock];
    for (int i = 0; i < n; ++i) d[i] = float((score[i] - top) * inverse);
    std::fill(d + n, d + kBlock, -INFINITY);
    return exponentials(d, e);
  }

  // The weight of the whole vocabulary, block by block in scratch.block too.
  double total(bool exact) const {
    double sum = 0;
    for (int64_t b = 0; b < scores.blocks(); ++b) sum += scratch.block[b] = block_weight(b, exact);
    return sum;
  }

  // Whether an inexact total leaves open if another token than this one, with `before` the sum up to it, meets `target`.
  static bool unsure(double target, double before, double weight, double total) {
    return target - before < kLoss * total || before + weight - target < kLoss * total;
  }

  // The first sum above uniform * sum is the first to come to the next larger number.
  double target(double sum) const { return std::nextafter(uniform * sum, INFINITY); }

  int64_t from_all(bool exact) {
    const double sum = total(exact), wanted = target(sum);
    double before = 0;
    int64_t b = 0;
    for (; b + 1 < scores.blocks() && before + scratch.block[b] < wanted; ++b) before += scratch.block[b];
    gather(-INFINITY, b, b + 1);
    weigh();
    const Token* token = walk(tokens.data(), tokens.data() + tokens.size(), wanted, before);
    return !exact && unsure(wanted, before, token->weight, sum) ? from_all(true) : token->id;
  }

  void likeliest(int64_t count) {
    // As many blocks as `count` reach the count-th largest of their maxima, so as many tokens do.
    double bar = -INFINITY;
    if (count <= scores.blocks()) {
      auto& most = scratch.block = scratch.most;
      std::nth_element(most.begin(), most.begin() + count - 1, most.end(), std::greater<>());
      bar = most[count - 1];
    }
    gather(bar, 0, scores.blocks());
    std::nth_element(tokens.begin(), tokens.begin() + count - 1, tokens.end(), likelier);
    tokens.resize(count);
  }

  // Keeps the likeliest tokens that have top_p of `sum`, which is inexact where `whole`: of the vocabulary.
  void nucleus(double sum, bool whole) {
    Token *first = tokens.data(), *last = first + tokens.size();
    double before;
    const Token* edge = reach(first, last, how.top_p * sum, before);
    if (whole && unsure(how.top_p * sum, before, edge->weight, sum))
      edge = reach(first, last, how.top_p * total(true), before);
    tokens.resize(edge - first + 1);
  }

  double kept() const {
    double sum = 0;
    for (const Token& token : tokens) sum += token.weight;
    return sum;
  }

  int64_t operator()() {
    const bool few = how.top_k > 0 && how.top_k < scores.size, whole = !few && how.top_p < 1;
    if (!few && !whole && how.min_p <= 0) return from_all(false);
    const double all = whole ? total(false) : 0;
    if (few)
      likeliest(how.top_k);
    else if (whole)  // tokens below (1 - top_p) / size together weigh less than 1 - top_p: none is in the nucleus
      gather(score_of((1 - how.top_p) / double(scores.size) * all * (1 - kLoss)), 0, scores.blocks());
    else
      gather(score_of(how.min_p * (1 - 1e-9)), 0, scores.blocks());
    weigh();
    if (how.top_p < 1) nucleus(whole ? all : kept(), whole);
    const auto weak = [&](const Token& token) { return token.weight < how.min_p; };  // the likeliest one's is 1
    tokens.erase(std::remove_if(tokens.begin(), tokens.end(), weak), tokens.end());
    double before = 0;
    Token *first = tokens.data(), *last = first + tokens.size();
    // Without top-k and top-p the reference draws in the order of ids.
    return (few || whole ? reach : walk)(first, last, target(kept()), before)->id;
  }
};

}  // namespace

int64_t sample(const float* logits, int64_t size, const Sampling& how, Seen seen, double uniform) {
  const Scores scores{logits, size, how.penalty == 1 ? Seen{nullptr, 0} : seen, how.penalty};
  scratch.most.resize(scores.blocks());
  scratch.block.resize(scores.blocks());
  int64_t best = 0;
  for (int64_t b = 0; b < scores.blocks(); ++b) {
    scratch.most[b] = scores.most(b);
    if (std::isnan(scratch.most[b])) return -1;
    if (scratch.most[b] > scratch.most[best]) best = b;
  }
  const double top = size > 0 ? scratch.most[best] : NAN;
  if (!std::isfinite(top)) return -1;
  if (how.temperature > 0) return Draw{scores, how, top, uniform}();
  double score[kBlock];
  scores.load(best, score);
  return best * kBlock + (std::find(score, score + scores.count(best), top) - score);
}

}  // namespace edgellm

extern "C" __attribute__((visibility("default"))) int64_t edgellm_sample(const float* logits, int64_t size,
                                                                         double temperature, int64_t top_k,
                                                                         double top_p, double min_p, double penalty,
                                                                         const int64_t* seen, int64_t seen_count,
                                                                         double uniform) {
  return edgellm::sample(logits, size, {temperature, top_k, top_p, min_p, penalty}, {seen, seen_count}, uniform);
}
