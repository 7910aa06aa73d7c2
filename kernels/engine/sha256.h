// SHA-256 (FIPS 180-4).
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace edgellm {

// In hex, of any bytes.
std::string sha256(std::string_view bytes);

}  // namespace edgellm
