// Hashes of standard input in hex, a line each: by portable code, and by the processor's instructions where it has them.
#include <cstdio>
#include <string>

#include "kernels/engine/sha256_blocks.h"

namespace {

void print(edgellm::Sha256Blocks take, std::string text) {
  const unsigned long long bits = text.size() * 8ull;
  text += '\x80';
  text.resize((text.size() + 8 + 63) / 64 * 64);
  for (size_t i = 0; i < 8; ++i) text[text.size() - 1 - i] = char(bits >> 8 * i);
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const size_t blocks = text.size() / 64, first = blocks / 2;  // in two calls
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  take(state, bytes, first);
  take(state, bytes + 64 * first, blocks - first);
  for (uint32_t word : state) std::printf("%08x", word);
  std::puts("");
}

}  // namespace

int main() {
  std::string text;
  for (int c; (c = std::getchar()) != EOF;) text += char(c);
  print(edgellm::sha256_portable, text);
  if (edgellm::sha256_hardware()) print(edgellm::sha256_hardware(), text);
}
