// SHA-256 (FIPS 180-4).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace edgellm {

class Sha256 {
 public:
  void add(std::string_view bytes);
  // In hex, of all that was added; nothing can be added any more.
  std::string hex();

 private:
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t rest_[64];  // bytes that fill no block yet
  uint64_t size_ = 0;
};

// Of a text.
std::string sha256(std::string_view bytes);
// Of a file, which is read in pieces: mapped, all of it would count as this process's memory. Throws Error.
std::string sha256_of_file(const std::string& folder, const std::string& name);

}  // namespace edgellm
