// What tokenizers ask of Unicode: the classes of their patterns, and normal form C (Unicode Standard Annex 15).
#pragma once
#include <cstdint>
#include <string>

namespace edgellm {

// A code point's classes, as a sum: \p{L}, \p{N}, \p{M} and \s of tokenizers' regular expressions, and what its pre-tokenizer
// `Digits` takes for one.
enum Class : uint8_t { kLetter = 1, kNumber = 2, kMark = 4, kSpace = 8, kDigit = 16 };
uint8_t classes_of(char32_t c);

std::u32string nfc(std::u32string_view text);

}  // namespace edgellm
