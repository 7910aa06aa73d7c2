// Tokens that are matched in a text before any splitting, such as "<|im_start|>".
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace edgellm {

struct AddedToken {
  int32_t id;
  bool strip_left, strip_right;  // takes the white space on that side along
};

// A piece of a text: an added token, or what lies between two.
struct Segment {
  int32_t id;  // -1: text
  std::string_view text;
};

class AddedTokens {
 public:
  void add(const std::string& content, AddedToken token);
  // In order; of several tokens that begin at the same place the longest.
  std::vector<Segment> split(std::string_view text) const;

 private:
  const AddedToken* longest(std::string_view text, size_t& length) const;

  std::unordered_map<std::string, AddedToken> tokens_;
  std::vector<size_t> lengths_[256];  // by first byte, descending
};

}  // namespace edgellm
