// The regular expressions that cut text into words before merging, as byte-level tokenizers use them: alternatives of
// character sets, each once or repeated, and negative lookahead. Anything else is refused when it is read.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace edgellm {

// A tokenizer of a kind this library does not read; its bundle takes ids only.
struct UnsupportedTokenizer : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// GPT-2's, which ByteLevel has built in.
inline constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class SplitPattern {
 public:
  // Throws UnsupportedTokenizer.
  explicit SplitPattern(const std::string& pattern);
  // Ends of the pieces of a text: every match, and what lies between two, is a piece of its own.
  std::vector<size_t> split(std::u32string_view text) const;

 private:
  friend class PatternReader;
  // Characters: those in `ranges`, of one of the classes, or of none of those in `without`; or all others.
  struct Set {
    std::vector<std::pair<char32_t, char32_t>> ranges;
    uint8_t classes = 0, without = 0;
    bool negated = false;
    bool has(char32_t c) const;
  };
  struct Item {
    Set set;
    size_t least = 1, most = 1;
    bool not_next = false;  // (?!set)
  };
  using Alternative = std::vector<Item>;

  // The end of a match that begins at `at`, tried in the order of backtracking; npos if there is none.
  static size_t match(const Alternative& items, size_t item, std::u32string_view text, size_t at);

  std::vector<Alternative> alternatives_;
};

}  // namespace edgellm
