// Token ids to text, a token at a time, never showing half a character: runtime/detokenize.py, which explains it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/engine/tokenizer.h"

namespace edgellm {

class Detokenizer {
 public:
  // The text that this id completed; "" where the tokenizer cannot decode.
  std::string add(const Tokenizer& tokenizer, int32_t id);
  // What was held back and is whole.
  std::string finish(const Tokenizer& tokenizer) { return next(tokenizer, true); }

 private:
  std::string next(const Tokenizer& tokenizer, bool final);
  std::vector<int32_t> ids_;
  size_t start_ = 0;  // of the piece before, for context
  size_t shown_ = 0;  // ids whose text is out
};

}  // namespace edgellm
