// Reading kernels.json: objects, arrays, strings without escapes but \" and \\, numbers, true, false, null (RFC 8259).
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace edgellm {

struct Json {
  std::string text;  // of a string; of a number or word as it stands, true and false as 1 and 0
  std::vector<Json> items;
  std::map<std::string, Json> members;

  const Json& operator[](const std::string& name) const {
    static const Json nothing;
    const auto found = members.find(name);
    return found == members.end() ? nothing : found->second;
  }
  uint32_t number() const { return static_cast<uint32_t>(std::strtoul(text.c_str(), nullptr, 10)); }
};

class JsonReader {
 public:
  explicit JsonReader(const std::string& source) : at_(source.c_str()) {}

  // False where the source is no JSON.
  bool read(Json* value, int depth = 0) {
    if (depth > 16) return false;
    skip();
    if (*at_ == '{') return pairs(value, depth);
    if (*at_ == '[') return list(value, depth);
    if (*at_ == '"') return string(&value->text);
    const char* end = at_ + std::strcspn(at_, ",]} \n\t\r");
    value->text.assign(at_, end);
    at_ = end;
    if (value->text == "true") value->text = "1";
    if (value->text == "false") value->text = "0";
    return !value->text.empty();
  }

 private:
  void skip() { at_ += std::strspn(at_, " \n\t\r"); }

  bool next(char end) {  // whether another element comes; the end is passed
    skip();
    if (*at_ == ',') ++at_;
    skip();
    if (*at_ != end) return *at_ != '\0';
    ++at_;
    return false;
  }

  bool string(std::string* text) {
    for (++at_; *at_ != '"'; ++at_) {
      if (*at_ == '\\') ++at_;
      if (*at_ == '\0') return false;
      text->push_back(*at_);
    }
    ++at_;
    return true;
  }

  bool pairs(Json* value, int depth) {
    for (++at_; next('}');) {
      std::string name;
      if (*at_ != '"' || !string(&name)) return false;
      skip();
      if (*at_++ != ':' || !read(&value->members[name], depth + 1)) return false;
    }
    return at_[-1] == '}';
  }

  bool list(Json* value, int depth) {
    for (++at_; next(']');) {
      value->items.emplace_back();
      if (!read(&value->items.back(), depth + 1)) return false;
    }
    return at_[-1] == ']';
  }

  const char* at_;
};

}  // namespace edgellm
