#include "kernels/engine/json.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "kernels/engine/utf8.h"

namespace edgellm {
namespace {

constexpr int kDeepest = 100;

uint32_t hex4(std::string_view digits) {
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) throw JsonError("an escape is not \\uXXXX");
  return value;
}

// The characters between a string's quotes.
std::string unescape(std::string_view raw) {
  std::string out;
  for (size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] != '\\') {
      out += raw[i];
      continue;
    }
    const char c = raw[++i];
    if (const size_t place = std::string_view("\"\\/bfnrt").find(c); place != std::string_view::npos) {
      out += "\"\\/\b\f\n\r\t"[place];
      continue;
    }
    char32_t code = hex4(raw.substr(i + 1, 4));
    i += 4;
    if (code >= 0xD800 && code < 0xDC00 && raw.substr(i + 1, 2) == "\\u") {
      const char32_t low = hex4(raw.substr(i + 3, 4));
      if (low >= 0xDC00 && low < 0xE000) code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00), i += 6;
    }
    if (code >= 0xD800 && code < 0xE000) throw JsonError("half of a surrogate pair");
    append_utf8(out, code);
  }
  return out;
}

}  // namespace

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json document() {
    Json value = read(0);
    if (skip() != '\0' || at_ < text_.size()) fail("something follows the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const { throw JsonError(std::string(what) + " at byte " + std::to_string(at_)); }
  // The next character that is no white space, not yet taken; 0 at the end.
  char skip() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  void take(char wanted) {
    if (skip() != wanted) fail("not JSON");
    ++at_;
  }
  Json read(int depth) {
    if (depth > kDeepest) fail("nested too deeply");
    Json value;
    switch (const char c = skip()) {
      case '{': object(value, depth); break;
      case '[': array(value, depth); break;
      case '"':
        value.kind_ = Json::kString;
        value.raw_ = quoted();
        break;
      default: scalar(value, c);
    }
    return value;
  }
  void object(Json& value, int depth) {
    value.kind_ = Json::kObject;
    take('{');
    if (skip() == '}') return take('}');
    for (;;) {
      if (skip() != '"') fail("a key is missing");
      std::string key = unescape(quoted());
      if (value.find(key)) fail("a key comes twice");
      take(':');
      value.members_.emplace_back(std::move(key), read(depth + 1));
      if (skip() != ',') return take('}');
      take(',');
    }
  }
  void array(Json& value, int depth) {
    value.kind_ = Json::kArray;
    take('[');
    if (skip() == ']') return take(']');
    for (;;) {
      value.items_.push_back(read(depth + 1));
      if (skip() != ',') return take(']');
      take(',');
    }
  }
  // What stands between the quotes, its escapes known to be whole.
  std::string_view quoted() {
    const size_t start = ++at_;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (static_cast<unsigned char>(text_[at_]) < 0x20) fail("a control character in a string");
      if (text_[at_] == '\\' && ++at_ < text_.size() && std::string_view("\"\\/bfnrtu").find(text_[at_]) == std::string_view::npos)
        fail("an unknown escape");
    }
    if (at_ >= text_.size()) fail("a string does not end");
    return text_.substr(start, at_++ - start);
  }
  void scalar(Json& value, char first) {
    const size_t start = at_;
    while (at_ < text_.size() && std::string_view(" \t\r\n,]}").find(text_[at_]) == std::string_view::npos) ++at_;
    value.raw_ = text_.substr(start, at_ - start);
    const bool number = first == '-' || (first >= '0' && first <= '9');
    if (value.raw_ == "null") return;
    if (!number && value.raw_ != "true" && value.raw_ != "false") fail("not JSON");
    if (number && value.raw_.find_first_not_of("0123456789+-.eE") != std::string_view::npos) fail("not a number");
    value.kind_ = number ? Json::kNumber : Json::kBool;
  }

  std::string_view text_;
  size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return JsonReader(text).document(); }

void Json::expect(Kind kind, const char* what) const {
  if (kind_ != kind) throw JsonError(std::string("expected ") + what + " instead of " + std::string(raw_.substr(0, 40)));
}

const Json* Json::find(std::string_view key) const {
  expect(kObject, "an object");
  for (const auto& [name, value] : members_)
    if (name == key) return value.is_null() ? nullptr : &value;
  return nullptr;
}

const Json& Json::operator[](std::string_view key) const {
  if (const Json* found = find(key)) return *found;
  throw JsonError("\"" + std::string(key) + "\" is missing");
}

const std::vector<Json>& Json::items() const { return expect(kArray, "a list"), items_; }
const std::vector<std::pair<std::string, Json>>& Json::members() const { return expect(kObject, "an object"), members_; }
bool Json::boolean() const { return expect(kBool, "true or false"), raw_ == "true"; }
std::string Json::string() const { return expect(kString, "a string"), unescape(raw_); }

int64_t Json::integer() const {
  expect(kNumber, "an integer");
  int64_t value = 0;
  const auto [end, error] = std::from_chars(raw_.data(), raw_.data() + raw_.size(), value);
  if (error != std::errc() || end != raw_.data() + raw_.size()) throw JsonError(std::string(raw_) + " is no integer of 64 bits");
  return value;
}

double Json::real() const {
  expect(kNumber, "a number");
  return std::strtod(std::string(raw_).c_str(), nullptr);
}

void Json::canonical(std::string& out, std::string_view without_key) const {
  if (kind_ == kArray) {
    out += '[';
    for (const Json& item : items_) {
      if (&item != &items_.front()) out += ',';
      item.canonical(out);
    }
    out += ']';
  } else if (kind_ == kObject) {
    std::vector<const std::pair<std::string, Json>*> sorted;
    for (const auto& member : members_)
      if (member.first != without_key) sorted.push_back(&member);
    std::sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    out += '{';
    for (const auto* member : sorted) {
      if (member != sorted.front()) out += ',';
      out += '"' + member->first + "\":";  // our keys are plain words
      member->second.canonical(out);
    }
    out += '}';
  } else {
    out += kind_ == kString ? '"' + std::string(raw_) + '"' : std::string(raw_);
  }
}

}  // namespace edgellm
