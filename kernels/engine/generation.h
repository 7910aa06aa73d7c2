// A continuation under way, token by token: runtime/generation.py and runtime/sampling.py.
#pragma once
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kernels/cpu/sample.h"
#include "kernels/engine/detokenizer.h"
#include "kernels/engine/random.h"
#include "kernels/engine/sequence.h"

namespace edgellm {

// How tokens are chosen, checked as Sampling of runtime/sampling.py is.
struct Choice {
  Sampling settings{0, 0, 1, 0, 1};
  int64_t seed = -1;
};
Choice choice_of(const edgellm_sampling& given);

class Generation {
 public:
  // Runs the prompt. Throws as Sequence::extend does.
  Generation(Sequence& sequence, const Tokenizer& tokenizer, const Choice& choice, std::set<int32_t> stops, std::vector<int32_t> prompt,
             bool keep);

  // Whether there was another token: its id and the text that it completed; else the text held back so far, once.
  bool next(int32_t& id, std::string& piece);
  // Ends it, and gives the text held back.
  std::string finish(const char* reason);
  const float* logits();

  const std::vector<int32_t>& ids() const { return ids_; }
  const std::string& text() const { return text_; }
  const char* stop_reason() const { return reason_; }
  size_t prompt_tokens() const { return prompt_; }
  double prefill_s = 0, decode_s = 0;

 private:
  int32_t choose(const float* row);

  Sequence& sequence_;
  const Tokenizer& tokenizer_;
  Choice choice_;
  std::optional<Random> random_;
  std::set<int32_t> stops_;
  std::vector<int64_t> seen_;  // ascending; only where a penalty asks for it
  std::vector<int32_t> ids_;
  std::string text_;
  Detokenizer pieces_;
  size_t prompt_;
  const float* logits_;  // after the tokens so far; null: the last one has not run yet
  const char* reason_ = "";
};

}  // namespace edgellm
