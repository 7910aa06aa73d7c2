// A bundle's tokenizer: text to ids and back, as `tokenizers` does it, from tokenizer.tables.
#pragma once
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/engine/added_tokens.h"
#include "kernels/engine/bpe.h"
#include "kernels/engine/error.h"
#include "kernels/engine/pre_tokenizer.h"
#include "kernels/engine/text_decoder.h"

namespace edgellm {

class Tokenizer {
 public:
  // Reads a bundle's tables; vocabulary: the model's. Throws Error (EDGELLM_BUNDLE) for damaged ones; kinds of tokenizers
  // that are not read here are refused by encode and decode, as a bundle that only lists tokenizer.json is (tables false).
  Tokenizer(const std::string& folder, int64_t vocabulary, bool tables);

  // Throws Error (EDGELLM_USAGE) for text that is not UTF-8, and as above.
  std::vector<int32_t> encode(std::string_view text) const;
  // Text of ids, those of no token left out, special ones too unless wanted. Throws as above.
  std::string decode(const int32_t* ids, size_t count, bool special) const;
  // A token as the vocabulary writes it; empty: no such token. Holds as long as the tokenizer.
  std::string_view token(int32_t id) const;
  bool can_decode() const { return decoder_.has_value(); }

 private:
  void read(int64_t vocabulary);
  void add_token(const Json& token);
  Error refused() const;

  std::unique_ptr<Vocabulary> vocabulary_;
  std::optional<BytePairs> merges_;
  std::optional<Normalizer> normalizer_;
  std::optional<PreTokenizer> pre_tokenizer_;
  std::optional<TextDecoder> decoder_;
  AddedTokens raw_, normalized_;  // matched before and after the text is normalized
  std::unordered_map<int32_t, std::string> contents_;
  std::set<int32_t> special_;
  std::string unsupported_;  // why texts cannot be encoded; "" if they can
};

}  // namespace edgellm
