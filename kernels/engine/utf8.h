// UTF-8, and code points.
#pragma once
#include <string>
#include <string_view>

namespace edgellm {

constexpr char32_t kBroken = 0xFFFD;  // what a decoder writes for bytes that are not UTF-8

inline void append_utf8(std::string& out, char32_t c) {
  const auto tail = [&](int shift) { out += char(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += char(0xC0 | (c >> 6));
    tail(0);
  } else if (c < 0x10000) {
    out += char(0xE0 | (c >> 12));
    tail(6), tail(0);
  } else {
    out += char(0xF0 | (c >> 18));
    tail(12), tail(6), tail(0);
  }
}

// The code point at byte `at`, which moves behind it. Bytes that are none give `kBroken` once for each longest beginning
// of a character among them, as Rust's and Python's decoders do ("maximal subparts", the Unicode Standard, section 3.9).
inline char32_t next_code_point(std::string_view text, size_t& at, bool& broken) {
  const unsigned char first = static_cast<unsigned char>(text[at++]);
  if (first < 0x80) return first;
  const int more = first >= 0xC2 && first < 0xE0 ? 1 : first >= 0xE0 && first < 0xF0 ? 2 : first >= 0xF0 && first < 0xF5 ? 3 : 0;
  // The second byte's range leaves out what is too long, surrogates, and what is beyond U+10FFFF.
  unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80, high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  char32_t c = more == 1 ? first & 0x1F : more == 2 ? first & 0x0F : first & 0x07;
  for (int i = 0; i < more; ++i, low = 0x80, high = 0xBF) {
    const unsigned char byte = at < text.size() ? static_cast<unsigned char>(text[at]) : 0;
    if (byte < low || byte > high) return broken = true, kBroken;
    c = (c << 6) | (byte & 0x3F);
    ++at;
  }
  if (!more) return broken = true, kBroken;
  return c;
}

inline bool is_utf8(std::string_view text) {
  bool broken = false;
  for (size_t at = 0; at < text.size() && !broken;) next_code_point(text, at, broken);
  return !broken;
}

// Code points of a text; where it is not UTF-8, `kBroken`.
inline std::u32string code_points(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  bool broken = false;
  for (size_t at = 0; at < text.size();) out += next_code_point(text, at, broken);
  return out;
}

inline std::string to_utf8(std::u32string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char32_t c : text) append_utf8(out, c);
  return out;
}

}  // namespace edgellm
