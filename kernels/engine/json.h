// JSON (RFC 8259), read strictly into a tree that points into the text: what a bundle's manifest and tables need.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgellm {

// A document or an access that is not as expected; whoever reads a file says which one.
struct JsonError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  enum Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  // The text must outlive the value. Throws JsonError, also for a key that comes twice, or more than 100 levels.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == kNull; }
  // A member. Throws JsonError where there is none, or this is no object.
  const Json& operator[](std::string_view key) const;
  // The same, null where there is none or its value is null.
  const Json* find(std::string_view key) const;
  const std::vector<Json>& items() const;
  const std::vector<std::pair<std::string, Json>>& members() const;
  bool boolean() const;
  int64_t integer() const;
  double real() const;
  std::string string() const;  // UTF-8
  // A string's characters, or a number as it is written.
  std::string word() const { return kind_ == kString ? string() : std::string(raw_); }
  // As Python's json.dumps writes it with sorted keys, no white space and ASCII only, if it wrote this document too.
  void canonical(std::string& out, std::string_view without_key = {}) const;

 private:
  friend class JsonReader;
  void expect(Kind kind, const char* what) const;

  Kind kind_ = kNull;
  std::string_view raw_;  // of what is neither array nor object
  std::vector<Json> items_;
  std::vector<std::pair<std::string, Json>> members_;
};

}  // namespace edgellm
