#include "kernels/engine/sha256.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/engine/error.h"
#include "kernels/engine/sha256_blocks.h"

namespace edgellm {
namespace {

void take_blocks(uint32_t state[8], const uint8_t* bytes, size_t blocks) {
  static const Sha256Blocks fastest = sha256_hardware() ? sha256_hardware() : sha256_portable;
  fastest(state, bytes, blocks);
}

}  // namespace

void Sha256::add(std::string_view bytes) {
  const uint8_t* at = reinterpret_cast<const uint8_t*>(bytes.data());
  size_t left = bytes.size();
  const size_t held = size_t(size_ % 64);
  size_ += left;
  if (held) {
    const size_t taken = std::min(left, 64 - held);
    std::memcpy(rest_ + held, at, taken);
    if (held + taken < 64) return;
    take_blocks(state_, rest_, 1);
    at += taken, left -= taken;
  }
  take_blocks(state_, at, left / 64);
  if (left % 64) std::memcpy(rest_, at + left / 64 * 64, left % 64);
}

std::string Sha256::hex() {
  const uint64_t bits = size_ * 8;
  std::string end(1, '\x80');
  end.append(size_t((119 - size_ % 64) % 64), '\0');
  for (int shift = 56; shift >= 0; shift -= 8) end += char(bits >> shift & 0xFF);
  add(end);
  std::string out;
  for (uint32_t word : state_)
    for (int shift = 28; shift >= 0; shift -= 4) out += "0123456789abcdef"[word >> shift & 15];
  return out;
}

std::string sha256(std::string_view bytes) {
  Sha256 hash;
  hash.add(bytes);
  return hash.hex();
}

std::string sha256_of_file(const std::string& folder, const std::string& name) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen((folder + "/" + name).c_str(), "rb"),
                                                   [](FILE* f) { return f ? std::fclose(f) : 0; });
  std::vector<char> piece(1 << 16);
  Sha256 hash;
  for (size_t got = 1; file && got;) hash.add({piece.data(), got = std::fread(piece.data(), 1, piece.size(), file.get())});
  if (!file || std::ferror(file.get())) throw bundle_error(name + " cannot be read: " + std::strerror(errno), "Check its permissions.");
  return hash.hex();
}

}  // namespace edgellm
