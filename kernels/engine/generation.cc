#include "kernels/engine/generation.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include <sys/random.h>

#include "kernels/engine/error.h"

// In libedgellm_ort.so: kernels/cpu/sample.h's sample(), as Python calls it.
extern "C" int64_t edgellm_sample(const float* logits, int64_t size, double temperature, int64_t top_k, double top_p, double min_p,
                                  double penalty, const int64_t* seen, int64_t seen_count, double uniform);

namespace edgellm {
namespace {

// Adds the time it lives to a sum, in seconds.
class Timed {
 public:
  explicit Timed(double& sum) : sum_(sum) {}
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;
  ~Timed() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

void check(const char* name, double value, bool fine, const char* expected) {
  if (!fine) throw usage_error(std::string(name) + " is " + std::to_string(value) + "; expected " + expected);
}

uint64_t fresh_seed() {
  uint64_t seed = 0;
  if (getrandom(&seed, sizeof seed, 0) != ssize_t(sizeof seed)) throw Error(EDGELLM_FAILED, "the system gives no random numbers");
  return seed;
}

}  // namespace

Choice choice_of(const edgellm_sampling& given) {
  const auto or_one = [](double value) { return value == 0 ? 1.0 : value; };  // 0 is what a zeroed struct says
  Choice c;
  c.settings = {given.temperature, given.top_k, or_one(given.top_p), given.min_p, or_one(given.repetition_penalty)};
  c.seed = given.seed;
  const Sampling& s = c.settings;
  check("temperature", s.temperature, s.temperature >= 0 && s.temperature <= 100, "0 (greedy) to 100");
  check("top_k", double(s.top_k), s.top_k >= 0, "0 (off) or more");
  check("top_p", s.top_p, s.top_p > 0 && s.top_p <= 1, "above 0, at most 1 (off)");
  check("min_p", s.min_p, s.min_p >= 0 && s.min_p <= 1, "0 (off) to 1");
  check("repetition_penalty", s.penalty, s.penalty > 0 && s.penalty <= 100, "above 0 (1 is off), at most 100");
  check("seed", double(c.seed), c.seed >= -1, "0 or more, or -1 for another one each time");
  return c;
}

Generation::Generation(Sequence& sequence, const Tokenizer& tokenizer, const Choice& choice, std::set<int32_t> stops,
                       std::vector<int32_t> prompt, bool keep)
    : sequence_(sequence), tokenizer_(tokenizer), choice_(choice), stops_(std::move(stops)), prompt_(prompt.size()) {
  const Timed timed(prefill_s);
  logits_ = sequence_.extend(prompt.data(), prompt.size(), keep);
  if (choice_.settings.temperature > 0) random_.emplace(choice_.seed < 0 ? fresh_seed() : uint64_t(choice_.seed));
  if (choice_.settings.penalty != 1) {
    const std::set<int32_t> once(prompt.begin(), prompt.end());
    seen_.assign(once.begin(), once.end());
  }
}

int32_t Generation::choose(const float* row) {
  const Sampling& s = choice_.settings;
  const double uniform = random_ ? random_->uniform() : 0;
  const int64_t id = edgellm_sample(row, sequence_.vocabulary(), s.temperature, s.top_k, s.top_p, s.min_p, s.penalty, seen_.data(),
                                    int64_t(seen_.size()), uniform);
  if (id < 0) throw bundle_error("the logits are not numbers", "Check the weights: edgellm inspect BUNDLE --verify");
  const auto place = std::lower_bound(seen_.begin(), seen_.end(), id);
  if (s.penalty != 1 && (place == seen_.end() || *place != id)) seen_.insert(place, id);
  return int32_t(id);
}

const float* Generation::logits() {
  if (!logits_) logits_ = sequence_.step(ids_.back());
  return logits_;
}

bool Generation::next(int32_t& id, std::string& piece) {
  if (!*reason_ && int64_t(prompt_ + ids_.size()) >= sequence_.limit()) {
    piece = finish("context");
    return false;
  }
  if (*reason_) return piece.clear(), false;
  const Timed timed(ids_.empty() ? prefill_s : decode_s);
  id = choose(logits());
  if (stops_.count(id)) {
    piece = finish("stop token");
    return false;
  }
  ids_.push_back(id);
  logits_ = nullptr;
  text_ += piece = pieces_.add(tokenizer_, id);
  return true;
}

std::string Generation::finish(const char* reason) {
  reason_ = reason;
  const std::string rest = pieces_.finish(tokenizer_);
  text_ += rest;
  return rest;
}

}  // namespace edgellm
