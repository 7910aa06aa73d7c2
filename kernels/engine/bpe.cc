#include "kernels/engine/bpe.h"

#include <algorithm>
#include <cstdio>
#include <queue>
#include <string>
#include <tuple>

#include "kernels/engine/utf8.h"

namespace edgellm {

BytePairs::BytePairs(const Vocabulary& vocabulary, const Json& options) : vocabulary_(vocabulary) {
  const auto flag = [&](const char* name) {
    const Json* value = options.find(name);
    return value && value->boolean();
  };
  fuse_unknown_ = flag("fuse_unk"), byte_fallback_ = flag("byte_fallback"), ignore_merges_ = flag("ignore_merges");
  if (const Json* unknown = options.find("unk_token")) unknown_ = vocabulary.id(unknown->string());
  char name[8];
  for (unsigned byte = 0; byte < bytes_.size(); ++byte) {
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    bytes_[byte] = byte_fallback_ ? vocabulary.id(name) : Vocabulary::kNone;
  }
}

void BytePairs::symbols_of(std::string_view word, std::vector<Symbol>& symbols) const {
  const auto add = [&](int32_t id) {
    const int at = int(symbols.size());
    symbols.push_back({id, at - 1, at + 1, true});
  };
  bool after_unknown = false, broken = false;
  for (size_t at = 0; at < word.size();) {
    const size_t start = at;
    next_code_point(word, at, broken);
    const std::string_view letter = word.substr(start, at - start);
    const bool was_unknown = after_unknown;
    after_unknown = false;
    if (const int32_t id = vocabulary_.id(letter); id != Vocabulary::kNone) {
      add(id);
    } else if (std::all_of(letter.begin(), letter.end(), [&](char c) { return bytes_[uint8_t(c)] != Vocabulary::kNone; })) {
      for (char c : letter) add(bytes_[uint8_t(c)]);
    } else if (unknown_ != Vocabulary::kNone) {  // without such a token what is unknown is left out
      if (!(was_unknown && fuse_unknown_)) add(unknown_);
      after_unknown = true;
    }
  }
  if (!symbols.empty()) symbols.back().next = -1;
}

void BytePairs::merge_all(std::vector<Symbol>& symbols) const {
  struct Candidate {
    int32_t rank;
    int left, right;
    int32_t left_id, right_id, result;
    bool operator>(const Candidate& other) const { return std::tie(rank, left) > std::tie(other.rank, other.left); }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int left) {
    const int right = left < 0 ? -1 : symbols[size_t(left)].next;
    if (right < 0) return;
    const int32_t a = symbols[size_t(left)].id, b = symbols[size_t(right)].id;
    if (const auto merge = vocabulary_.merge(a, b); merge.rank != Vocabulary::kNone) queue.push({merge.rank, left, right, a, b, merge.result});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) offer(int(i));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol &left = symbols[size_t(best.left)], &right = symbols[size_t(best.right)];
    // Offered before one of the two changed.
    if (!left.alive || !right.alive || left.next != best.right || left.id != best.left_id || right.id != best.right_id) continue;
    left.id = best.result;
    left.next = right.next;
    right.alive = false;
    if (right.next >= 0) symbols[size_t(right.next)].previous = best.left;
    offer(left.previous);
    offer(best.left);
  }
}

void BytePairs::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const int32_t whole = vocabulary_.id(word); whole != Vocabulary::kNone) return ids.push_back(whole);
  }
  std::vector<Symbol> symbols;
  symbols_of(word, symbols);
  merge_all(symbols);
  for (const Symbol& symbol : symbols)
    if (symbol.alive) ids.push_back(symbol.id);
}

}  // namespace edgellm
