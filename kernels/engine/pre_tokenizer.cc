#include "kernels/engine/pre_tokenizer.h"

#include <array>

#include "kernels/engine/unicode.h"
#include "kernels/engine/utf8.h"

namespace edgellm {
namespace {

[[noreturn]] void refuse(const char* part, const Json& step) {
  throw UnsupportedTokenizer(std::string("the ") + part + " " + step["type"].string());
}

void cut(const std::u32string& word, const std::vector<size_t>& ends, PreTokenizer::Words& out) {
  size_t start = 0;
  for (size_t end : ends) {
    out.push_back(word.substr(start, end - start));
    start = end;
  }
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; !from.empty() && (at = text.find(from, at)) != std::string::npos; at += to.size()) text.replace(at, from.size(), to);
  return text;
}

}  // namespace

Normalizer::Normalizer(const Json* normalizer) {
  if (normalizer) add(*normalizer);
}

void Normalizer::add(const Json& step) {
  const std::string type = step["type"].string();
  if (type == "Sequence") {
    for (const Json& one : step["normalizers"].items()) add(one);
  } else if (type == "NFC") {
    steps_.push_back([](const std::string& text) { return to_utf8(nfc(code_points(text))); });
  } else if (const Json* literal = type == "Replace" ? step["pattern"].find("String") : nullptr) {
    steps_.push_back([from = literal->string(), to = step["content"].string()](const std::string& text) { return replaced(text, from, to); });
  } else if (type == "Prepend") {
    steps_.push_back([first = step["prepend"].string()](const std::string& text) { return text.empty() ? text : first + text; });
  } else {
    refuse("normalizer", step);
  }
}

std::string Normalizer::operator()(std::string text) const {
  for (const auto& step : steps_) text = step(text);
  return text;
}

PreTokenizer::PreTokenizer(const Json* pre_tokenizer) {
  if (pre_tokenizer) add(*pre_tokenizer);
}

void PreTokenizer::add(const Json& step) {
  const std::string type = step["type"].string();
  if (type == "Sequence") {
    for (const Json& one : step["pretokenizers"].items()) add(one);
  } else if (type == "Split") {
    add_split(step);
  } else if (type == "ByteLevel") {
    add_bytes(step);
  } else if (type == "Digits") {
    steps_.push_back([alone = step["individual_digits"].boolean()](const std::u32string& word, Words& out) {
      const auto digit = [](char32_t c) { return (classes_of(c) & kDigit) != 0; };
      std::vector<size_t> ends;
      for (size_t i = 1; i <= word.size(); ++i)
        if (i == word.size() || digit(word[i]) != digit(word[i - 1]) || (alone && digit(word[i]))) ends.push_back(i);
      cut(word, ends, out);
    });
  } else {
    refuse("pre-tokenizer", step);
  }
}

void PreTokenizer::add_split(const Json& step) {
  const std::string behavior = step["behavior"].string();
  const Json *regex = step["pattern"].find("Regex"), *literal = step["pattern"].find("String");
  if (step["invert"].boolean()) refuse("pre-tokenizer (inverted)", step);
  if (regex && behavior == "Isolated") {
    steps_.push_back([pattern = SplitPattern(regex->string())](const std::u32string& word, Words& out) { cut(word, pattern.split(word), out); });
  } else if (literal && behavior == "MergedWithPrevious") {
    const std::u32string mark = code_points(literal->string());
    if (mark.empty()) refuse("pre-tokenizer (empty)", step);
    steps_.push_back([mark](const std::u32string& word, Words& out) {
      std::vector<size_t> ends;
      for (size_t at = 0; (at = word.find(mark, at)) != std::u32string::npos;) ends.push_back(at += mark.size());
      if (ends.empty() || ends.back() < word.size()) ends.push_back(word.size());
      cut(word, ends, out);
    });
  } else {
    refuse("pre-tokenizer (another behavior)", step);
  }
}

void PreTokenizer::add_bytes(const Json& step) {
  const bool space = step["add_prefix_space"].boolean();
  const Json* built_in = step.find("use_regex");  // older files do not say: they use it
  if (space) {
    steps_.push_back([](const std::u32string& word, Words& out) { out.push_back(word.substr(0, 1) == U" " ? word : U" " + word); });
  }
  if (!built_in || built_in->boolean()) {
    steps_.push_back([pattern = SplitPattern(kGpt2Pattern)](const std::u32string& word, Words& out) { cut(word, pattern.split(word), out); });
  }
  steps_.push_back([](const std::u32string& word, Words& out) {
    std::u32string letters;
    for (char byte : to_utf8(word)) letters += letter_of(uint8_t(byte));
    out.push_back(std::move(letters));
  });
}

std::vector<std::string> PreTokenizer::operator()(std::string_view text) const {
  Words words{code_points(text)}, next;
  for (const auto& step : steps_) {
    next.clear();
    for (const std::u32string& word : words)
      if (!word.empty()) step(word, next);
    words.swap(next);
  }
  std::vector<std::string> out;
  for (const std::u32string& word : words)
    if (!word.empty()) out.push_back(to_utf8(word));
  return out;
}

char32_t letter_of(uint8_t byte) {
  static const std::array<char32_t, 256> letters = [] {
    std::array<char32_t, 256> all{};
    char32_t next = 256;  // for bytes that are not printable in Latin-1
    for (char32_t b = 0; b < 256; ++b) all[b] = (b >= 33 && b <= 126) || (b >= 161 && b != 173) ? b : next++;
    return all;
  }();
  return letters[byte];
}

}  // namespace edgellm
