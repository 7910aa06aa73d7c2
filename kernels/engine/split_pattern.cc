#include "kernels/engine/split_pattern.h"

#include "kernels/engine/unicode.h"
#include "kernels/engine/utf8.h"

namespace edgellm {
namespace {

constexpr size_t kNone = std::u32string_view::npos;
constexpr char32_t kLongS = 0x17F, kKelvin = 0x212A;  // the only other letters that fold to ASCII ones

}  // namespace

class PatternReader {
 public:
  using Set = SplitPattern::Set;
  using Alternative = SplitPattern::Alternative;

  explicit PatternReader(const std::string& pattern) : pattern_(pattern), text_(code_points(pattern)) {}

  std::vector<Alternative> read() {
    auto all = alternatives(false);
    if (at_ < text_.size()) fail();
    return all;
  }

 private:
  [[noreturn]] void fail() const { throw UnsupportedTokenizer("the pattern " + pattern_ + " at character " + std::to_string(at_)); }
  bool take(const char32_t* wanted) {
    const std::u32string_view word(wanted);
    if (text_.compare(at_, word.size(), word) != 0) return false;
    at_ += word.size();
    return true;
  }
  char32_t next() {
    if (at_ >= text_.size()) fail();
    return text_[at_++];
  }

  std::vector<Alternative> alternatives(bool any_case) {
    std::vector<Alternative> all;
    do {
      const bool lower = take(U"(?i:");
      if (lower || take(U"(?:")) {
        // A group that is an alternative by itself is its alternatives; in another place it would not be.
        auto inner = alternatives(any_case || lower);
        if (!take(U")") || (at_ < text_.size() && text_[at_] != '|' && text_[at_] != ')')) fail();
        all.insert(all.end(), inner.begin(), inner.end());
      } else {
        all.push_back(sequence(any_case));
      }
    } while (take(U"|"));
    return all;
  }
  Alternative sequence(bool any_case) {
    Alternative items;
    while (at_ < text_.size() && text_[at_] != '|' && text_[at_] != ')') {
      const bool not_next = take(U"(?!");
      SplitPattern::Item item{one(any_case), 1, 1, not_next};
      if (not_next && !take(U")")) fail();
      if (!not_next) repeat(item);
      items.push_back(std::move(item));
    }
    if (items.empty()) fail();
    return items;
  }
  void repeat(SplitPattern::Item& item) {
    if (take(U"?")) item.least = 0;
    else if (take(U"*")) item.least = 0, item.most = kNone;
    else if (take(U"+")) item.most = kNone;
    else if (take(U"{")) {
      item.least = number();
      item.most = take(U",") ? number() : item.least;
      if (!take(U"}")) fail();
    }
    if (at_ < text_.size() && (text_[at_] == '?' || text_[at_] == '+' || text_[at_] == '*' || text_[at_] == '{')) fail();
  }
  size_t number() {
    size_t value = 0;
    const size_t start = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9' && at_ < start + 4) value = value * 10 + (next() - '0');
    if (at_ == start) fail();
    return value;
  }
  Set one(bool any_case) {
    Set set;
    if (!take(U"[")) {
      add(set, any_case);
      return set;
    }
    set.negated = take(U"^");
    while (!take(U"]")) add(set, any_case);
    return set;
  }
  // One character, range or class of a set.
  void add(Set& set, bool any_case) {
    const char32_t c = next();
    if (c == '\\') return escape(set);
    if (std::u32string_view(U"[]().*+?^$|{}").find(c) != kNone) --at_, fail();
    char32_t last = c;
    if (take(U"-")) last = next();
    if (last < c || last == '\\') fail();
    set.ranges.emplace_back(c, last);
    if (!any_case) return;
    if (c != last || c >= 128) fail();
    const char32_t lower = c | 0x20;
    if (lower < 'a' || lower > 'z') return;
    set.ranges.emplace_back(c ^ 0x20, c ^ 0x20);
    if (lower == 's') set.ranges.emplace_back(kLongS, kLongS);
    if (lower == 'k') set.ranges.emplace_back(kKelvin, kKelvin);
  }
  void escape(Set& set) {
    switch (const char32_t c = next()) {
      case 's': set.classes |= kSpace; break;
      case 'S': set.without |= kSpace; break;
      case 'r': set.ranges.emplace_back('\r', '\r'); break;
      case 'n': set.ranges.emplace_back('\n', '\n'); break;
      case 't': set.ranges.emplace_back('\t', '\t'); break;
      case 'p':
        if (take(U"{L}")) set.classes |= kLetter;
        else if (take(U"{N}")) set.classes |= kNumber;
        else if (take(U"{M}")) set.classes |= kMark;
        else fail();
        break;
      default:
        if (c >= 128 || (c | 0x20) - 'a' < 26u || c - '0' < 10u) fail();
        set.ranges.emplace_back(c, c);
    }
  }

  const std::string& pattern_;
  std::u32string text_;
  size_t at_ = 0;
};

SplitPattern::SplitPattern(const std::string& pattern) : alternatives_(PatternReader(pattern).read()) {}

bool SplitPattern::Set::has(char32_t c) const {
  const uint8_t found = classes_of(c);
  bool inside = (found & classes) || (without && !(found & without));
  for (const auto& [first, last] : ranges) inside = inside || (c >= first && c <= last);
  return inside != negated;
}

size_t SplitPattern::match(const Alternative& items, size_t item, std::u32string_view text, size_t at) {
  if (item == items.size()) return at;
  const Item& i = items[item];
  if (i.not_next) return at < text.size() && i.set.has(text[at]) ? kNone : match(items, item + 1, text, at);
  size_t count = 0;
  while (count < i.most && at + count < text.size() && i.set.has(text[at + count])) ++count;
  for (; count + 1 > i.least; --count) {  // greedy: the longest first
    const size_t end = match(items, item + 1, text, at + count);
    if (end != kNone) return end;
    if (!count) break;
  }
  return kNone;
}

std::vector<size_t> SplitPattern::split(std::u32string_view text) const {
  std::vector<size_t> ends;
  size_t piece = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = kNone;
    for (auto a = alternatives_.begin(); a != alternatives_.end() && end == kNone; ++a) end = match(*a, 0, text, at);
    if (end == kNone || end == at) {  // in no match: part of the piece between two
      ++at;
      continue;
    }
    if (at > piece) ends.push_back(at);
    ends.push_back(piece = at = end);
  }
  if (piece < text.size()) ends.push_back(text.size());
  return ends;
}

}  // namespace edgellm
