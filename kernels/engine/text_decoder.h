// From tokens to text: "decoder" of tokenizer.json.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "kernels/engine/json.h"

namespace edgellm {

class TextDecoder {
 public:
  using Tokens = std::vector<std::string>;

  // decoder: null joins tokens by spaces. Throws UnsupportedTokenizer, JsonError.
  explicit TextDecoder(const Json* decoder);
  std::string operator()(Tokens tokens) const;

 private:
  void add(const Json& step);
  std::vector<std::function<Tokens(Tokens)>> steps_;
};

}  // namespace edgellm
