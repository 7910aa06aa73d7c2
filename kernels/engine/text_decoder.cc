#include "kernels/engine/text_decoder.h"

#include <map>

#include "kernels/engine/pre_tokenizer.h"
#include "kernels/engine/utf8.h"

namespace edgellm {
namespace {

using Tokens = TextDecoder::Tokens;

std::string joined(const Tokens& tokens, const char* between = "") {
  std::string text;
  for (const std::string& token : tokens) text += (text.empty() ? "" : between) + token;
  return text;
}

Tokens from_bytes(const Tokens& tokens) {
  static const std::map<char32_t, char> bytes = [] {
    std::map<char32_t, char> all;
    for (unsigned b = 0; b < 256; ++b) all[letter_of(uint8_t(b))] = char(b);
    return all;
  }();
  std::string raw;
  for (const std::string& token : tokens) {
    std::string own;
    for (char32_t c : code_points(token)) {
      const auto found = bytes.find(c);
      if (found == bytes.end()) {  // an added token, written as it is
        own = token;
        break;
      }
      own += found->second;
    }
    raw += own;
  }
  return {to_utf8(code_points(raw))};
}

// The byte of a token such as "<0x0A>"; -1 for others.
int byte_of(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  int value = 0;
  for (char c : token.substr(3, 2)) {
    const size_t digit = std::string("0123456789ABCDEF").find(char(c >= 'a' && c <= 'f' ? c - 32 : c));
    if (digit == std::string::npos) return -1;
    value = value * 16 + int(digit);
  }
  return value;
}

// Runs of byte tokens become text; a run that is not UTF-8 one mark of what is broken a byte.
Tokens fall_back(const Tokens& tokens) {
  Tokens out;
  std::string run;
  const auto flush = [&] {
    if (run.empty()) return;
    if (is_utf8(run)) out.push_back(run);
    else out.insert(out.end(), run.size(), to_utf8(std::u32string(1, kBroken)));
    run.clear();
  };
  for (const std::string& token : tokens) {
    if (const int byte = byte_of(token); byte >= 0) {
      run += char(byte);
    } else {
      flush();
      out.push_back(token);
    }
  }
  flush();
  return out;
}

Tokens replaced(Tokens tokens, const std::string& from, const std::string& to) {
  for (std::string& token : tokens)
    for (size_t at = 0; (at = token.find(from, at)) != std::string::npos; at += to.size()) token.replace(at, from.size(), to);
  return tokens;
}

Tokens stripped(Tokens tokens, const std::string& what, size_t start, size_t stop) {
  for (std::string& token : tokens) {
    for (size_t i = 0; i < start && token.compare(0, what.size(), what) == 0; ++i) token.erase(0, what.size());
    for (size_t i = 0; i < stop && token.size() >= what.size() && token.compare(token.size() - what.size(), what.size(), what) == 0; ++i)
      token.erase(token.size() - what.size());
  }
  return tokens;
}

}  // namespace

TextDecoder::TextDecoder(const Json* decoder) {
  if (decoder) add(*decoder);
  else steps_.push_back([](const Tokens& tokens) { return Tokens{joined(tokens, " ")}; });
}

void TextDecoder::add(const Json& step) {
  const std::string type = step["type"].string();
  const Json* literal = type == "Replace" ? step["pattern"].find("String") : nullptr;
  if (type == "Sequence") {
    for (const Json& one : step["decoders"].items()) add(one);
  } else if (type == "ByteLevel") {
    steps_.push_back(from_bytes);
  } else if (type == "ByteFallback") {
    steps_.push_back(fall_back);
  } else if (type == "Fuse") {
    steps_.push_back([](const Tokens& tokens) { return Tokens{joined(tokens)}; });
  } else if (literal && !literal->string().empty()) {
    steps_.push_back([from = literal->string(), to = step["content"].string()](Tokens t) { return replaced(std::move(t), from, to); });
  } else if (type == "Strip" && !step["content"].string().empty()) {
    steps_.push_back([what = step["content"].string(), start = size_t(step["start"].integer()), stop = size_t(step["stop"].integer())](
                         Tokens t) { return stripped(std::move(t), what, start, stop); });
  } else {
    throw UnsupportedTokenizer("the decoder " + type);
  }
}

std::string TextDecoder::operator()(Tokens tokens) const {
  for (const auto& step : steps_) tokens = step(std::move(tokens));
  return joined(tokens);
}

}  // namespace edgellm
