#include "kernels/engine/unicode.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <vector>

namespace edgellm {
namespace {

#include "kernels/engine/unicode_tables.inc"

// From first to last, each as its distance from the number before.
struct Runs {
  std::vector<char32_t> ends;

  template <size_t N>
  explicit Runs(const uint32_t (&deltas)[N]) {
    char32_t at = 0;
    for (uint32_t delta : deltas) ends.push_back(at += delta);
  }
  bool has(char32_t c) const {
    const size_t before = size_t(std::lower_bound(ends.begin(), ends.end(), c) - ends.begin());  // ends below c
    return before % 2 || (before < ends.size() && ends[before] == c);
  }
};

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

uint8_t look_up(char32_t c) {
  static const Runs letters(kLetters), numbers(kNumbers), marks(kMarks), digits(kDigits);
  return uint8_t(letters.has(c) * kLetter + numbers.has(c) * kNumber + marks.has(c) * kMark + is_space(c) * kSpace +
                 digits.has(c) * kDigit);
}

struct Parts {
  char32_t first, second;  // second 0: none
};

// Hangul syllables are composed by arithmetic: the Unicode Standard, section 3.12.
constexpr char32_t kS = 0xAC00, kL = 0x1100, kV = 0x1161, kT = 0x11A7, kLCount = 19, kVCount = 21, kTCount = 28;

struct Composition {
  std::map<char32_t, Parts> parts;
  std::map<std::pair<char32_t, char32_t>, char32_t> whole;
  std::map<char32_t, uint8_t> classes;

  Composition() {
    char32_t c = 0;
    for (size_t i = 0; i < std::size(kCompositions); i += 4) {
      const Parts p{kCompositions[i + 1], kCompositions[i + 2]};
      parts[c += kCompositions[i]] = p;
      if (kCompositions[i + 3]) whole[{p.first, p.second}] = c;
    }
    c = 0;
    for (size_t i = 0; i < std::size(kClasses); i += 3) {
      const char32_t first = c + kClasses[i];
      for (c = first; c < first + kClasses[i + 1]; ++c) classes[c] = uint8_t(kClasses[i + 2]);
      classes[c] = uint8_t(kClasses[i + 2]);
    }
  }
  uint8_t combining(char32_t c) const {
    const auto found = classes.find(c);
    return found == classes.end() ? 0 : found->second;
  }
  void decompose(char32_t c, std::u32string& out) const {
    if (c >= kS && c < kS + kLCount * kVCount * kTCount) {
      const char32_t index = c - kS, t = index % kTCount;
      out += {kL + index / (kVCount * kTCount), kV + index / kTCount % kVCount};
      if (t) out += kT + t;
    } else if (const auto found = parts.find(c); found != parts.end()) {
      decompose(found->second.first, out);
      if (found->second.second) decompose(found->second.second, out);
    } else {
      out += c;
    }
  }
  // 0: they do not compose.
  char32_t compose(char32_t a, char32_t b) const {
    if (a >= kL && a < kL + kLCount && b >= kV && b < kV + kVCount) return kS + ((a - kL) * kVCount + (b - kV)) * kTCount;
    if (a >= kS && a < kS + kLCount * kVCount * kTCount && (a - kS) % kTCount == 0 && b > kT && b < kT + kTCount) return a + (b - kT);
    const auto found = whole.find({a, b});
    return found == whole.end() ? 0 : found->second;
  }
};

}  // namespace

uint8_t classes_of(char32_t c) {
  static const std::array<uint8_t, 128> ascii = [] {
    std::array<uint8_t, 128> all{};
    for (size_t i = 0; i < all.size(); ++i) all[i] = look_up(char32_t(i));
    return all;
  }();
  return c < ascii.size() ? ascii[c] : look_up(c);
}

std::u32string nfc(std::u32string_view text) {
  // Below U+0300 all is composed already, and nothing combines.
  if (std::none_of(text.begin(), text.end(), [](char32_t c) { return c >= 0x300; })) return std::u32string(text);
  static const Composition tables;
  std::u32string apart;
  for (char32_t c : text) tables.decompose(c, apart);
  for (auto at = apart.begin(); at != apart.end();) {  // canonical order within each run of marks
    const auto marks = std::find_if(at, apart.end(), [](char32_t c) { return tables.combining(c); });
    at = std::find_if(marks, apart.end(), [](char32_t c) { return !tables.combining(c); });
    std::stable_sort(marks, at, [](char32_t a, char32_t b) { return tables.combining(a) < tables.combining(b); });
  }
  std::u32string out;
  size_t starter = std::u32string::npos;
  int last = 0;  // class of what stands before, behind the starter
  for (char32_t c : apart) {
    const int kind = tables.combining(c);
    const bool blocked = starter == std::u32string::npos || (starter + 1 < out.size() && last >= kind);
    if (const char32_t joint = blocked ? 0 : tables.compose(out[starter], c)) {
      out[starter] = joint;
      continue;
    }
    if (!kind) starter = out.size();
    last = kind;
    out += c;
  }
  return out;
}

}  // namespace edgellm
