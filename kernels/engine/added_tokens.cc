#include "kernels/engine/added_tokens.h"

#include <algorithm>
#include <functional>

#include "kernels/engine/unicode.h"
#include "kernels/engine/utf8.h"

namespace edgellm {
namespace {

// Where the white space that ends a text begins.
size_t without_spaces_at_end(std::string_view text) {
  size_t end = 0;
  bool broken = false;
  for (size_t at = 0; at < text.size();)
    if (!(classes_of(next_code_point(text, at, broken)) & kSpace)) end = at;
  return end;
}

// Bytes of white space that a text begins with.
size_t spaces_at_start(std::string_view text) {
  size_t at = 0;
  bool broken = false;
  for (size_t next = 0; next < text.size(); at = next)
    if (!(classes_of(next_code_point(text, next, broken)) & kSpace)) break;
  return at;
}

}  // namespace

void AddedTokens::add(const std::string& content, AddedToken token) {
  if (content.empty()) return;
  tokens_[content] = token;
  auto& lengths = lengths_[uint8_t(content[0])];
  const auto place = std::lower_bound(lengths.begin(), lengths.end(), content.size(), std::greater<>());
  if (place == lengths.end() || *place != content.size()) lengths.insert(place, content.size());
}

const AddedToken* AddedTokens::longest(std::string_view text, size_t& length) const {
  for (size_t size : lengths_[uint8_t(text[0])]) {
    if (size > text.size()) continue;
    const auto found = tokens_.find(std::string(text.substr(0, size)));
    if (found == tokens_.end()) continue;
    length = size;
    return &found->second;
  }
  return nullptr;
}

std::vector<Segment> AddedTokens::split(std::string_view text) const {
  std::vector<Segment> segments;
  size_t done = 0;
  for (size_t at = 0, length = 0; at < text.size();) {
    const AddedToken* token = longest(text.substr(at), length);
    if (!token) {
      ++at;
      continue;
    }
    // What the token before took along stays its own.
    const size_t start = token->strip_left ? std::max(done, without_spaces_at_end(text.substr(0, at))) : at;
    at += length;
    const size_t stop = token->strip_right ? at + spaces_at_start(text.substr(at)) : at;
    if (start > done) segments.push_back({-1, text.substr(done, start - done)});
    segments.push_back({token->id, {}});
    done = stop;
    at = std::max(at, stop);
  }
  if (done < text.size()) segments.push_back({-1, text.substr(done)});
  return segments;
}

}  // namespace edgellm
