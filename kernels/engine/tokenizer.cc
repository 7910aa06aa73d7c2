#include "kernels/engine/tokenizer.h"

#include <algorithm>

#include "kernels/engine/error.h"
#include "kernels/engine/manifest.h"
#include "kernels/engine/utf8.h"

namespace edgellm {

Tokenizer::Tokenizer(const std::string& folder, int64_t vocabulary, bool tables) {
  if (!tables) {
    unsupported_ = "a vocabulary that is not BPE, or has parts of unknown kinds";
    return;
  }
  vocabulary_ = std::make_unique<Vocabulary>(folder);
  try {
    read(vocabulary);
  } catch (const JsonError& error) {
    throw bundle_error(std::string(kTables) + " cannot be read: " + error.what());
  }
}

void Tokenizer::read(int64_t vocabulary) {
  const Json facts = vocabulary_->take_facts();
  const Json& rest = facts["rest"];
  int64_t size = vocabulary_->size();
  // A part of an unknown kind leaves the others in use: such a bundle takes ids, and still gives text.
  const auto attempt = [&](auto read_part) {
    try {
      read_part();
    } catch (const UnsupportedTokenizer& error) {
      unsupported_ = error.what();
    }
  };
  attempt([&] { decoder_.emplace(rest.find("decoder")); });
  attempt([&] { normalizer_.emplace(rest.find("normalizer")); });
  attempt([&] { pre_tokenizer_.emplace(rest.find("pre_tokenizer")); });
  merges_.emplace(*vocabulary_, facts["options"]);
  for (const Json& token : rest["added_tokens"].items()) {
    size = std::max(size, token["id"].integer() + 1);
    attempt([&] { add_token(token); });
  }
  if (size > vocabulary)
    throw bundle_error(std::string(kTables) + " has " + std::to_string(size) + " tokens; the model's vocabulary is " + std::to_string(vocabulary));
}

void Tokenizer::add_token(const Json& token) {
  const std::string content = token["content"].string();
  const int64_t id = token["id"].integer();
  if (id < 0 || id >= int64_t(1) << 31) throw JsonError("an added token's id is " + std::to_string(id));
  contents_[int32_t(id)] = content;
  if (token["special"].boolean()) special_.insert(int32_t(id));
  const AddedToken added{int32_t(id), token["lstrip"].boolean(), token["rstrip"].boolean()};
  if (token["single_word"].boolean()) throw UnsupportedTokenizer("an added token that must be a word by itself: " + content);
  if (!token["normalized"].boolean()) raw_.add(content, added);
  else if (normalizer_) normalized_.add((*normalizer_)(content), added);
}

Error Tokenizer::refused() const {
  return usage_error("this library does not read this bundle's kind of tokenizer: " + unsupported_,
                     "Encode texts elsewhere, e.g. in Python by edgellm.runtime.load(BUNDLE).encode(TEXT), and give ids.");
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  if (!unsupported_.empty()) throw refused();
  if (!is_utf8(text)) throw usage_error("the text is not UTF-8", "Convert it: iconv -t utf-8");
  std::vector<int32_t> ids;
  for (const Segment& outer : raw_.split(text)) {
    if (outer.id >= 0) {
      ids.push_back(outer.id);
      continue;
    }
    const std::string plain = (*normalizer_)(std::string(outer.text));
    for (const Segment& inner : normalized_.split(plain)) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
        continue;
      }
      for (const std::string& word : (*pre_tokenizer_)(inner.text)) merges_->encode(word, ids);
    }
  }
  return ids;
}

std::string_view Tokenizer::token(int32_t id) const {
  const auto added = contents_.find(id);
  return added != contents_.end() ? std::string_view(added->second) : vocabulary_->token(id);
}

std::string Tokenizer::decode(const int32_t* ids, size_t count, bool special) const {
  if (!decoder_) throw refused();
  TextDecoder::Tokens tokens;
  for (size_t i = 0; i < count; ++i) {
    const int32_t id = ids[i];
    if (!special && special_.count(id)) continue;
    if (const std::string_view found = token(id); !found.empty()) tokens.emplace_back(found);
  }
  return (*decoder_)(std::move(tokens));
}

}  // namespace edgellm
