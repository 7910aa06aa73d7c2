// How a text is normalized, and cut into the words that are merged: "normalizer" and "pre_tokenizer" of tokenizer.json.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "kernels/engine/json.h"
#include "kernels/engine/split_pattern.h"

namespace edgellm {

class Normalizer {
 public:
  // normalizer: null for none. Throws UnsupportedTokenizer, JsonError.
  explicit Normalizer(const Json* normalizer);
  std::string operator()(std::string text) const;

 private:
  void add(const Json& step);
  std::vector<std::function<std::string(const std::string&)>> steps_;
};

class PreTokenizer {
 public:
  using Words = std::vector<std::u32string>;

  // pre_tokenizer: null for none. Throws UnsupportedTokenizer, JsonError.
  explicit PreTokenizer(const Json* pre_tokenizer);
  // Words of a normalized text, in the vocabulary's characters, UTF-8.
  std::vector<std::string> operator()(std::string_view text) const;

 private:
  void add(const Json& step);
  void add_split(const Json& step);
  void add_bytes(const Json& step);
  std::vector<std::function<void(const std::u32string& word, Words& out)>> steps_;
};

// The character by which byte-level vocabularies write a byte (GPT-2's table).
char32_t letter_of(uint8_t byte);

}  // namespace edgellm
