// Byte-pair encoding (Sennrich et al., arXiv 1508.07909): merges of neighbours, the lowest rank first.
#pragma once
#include <array>
#include <string_view>
#include <vector>

#include "kernels/engine/vocabulary.h"

namespace edgellm {

class BytePairs {
 public:
  // options: "options" of tokenizer.tables. Throws JsonError.
  BytePairs(const Vocabulary& vocabulary, const Json& options);

  // Appends the ids of a word, which is in the characters of the vocabulary.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

 private:
  struct Symbol {
    int32_t id;
    int previous, next;  // -1: none
    bool alive;
  };
  void symbols_of(std::string_view word, std::vector<Symbol>& symbols) const;
  void merge_all(std::vector<Symbol>& symbols) const;

  const Vocabulary& vocabulary_;
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
  int32_t unknown_ = Vocabulary::kNone;
  std::array<int32_t, 256> bytes_;  // ids of "<0x00>" to "<0xFF>"
};

}  // namespace edgellm
