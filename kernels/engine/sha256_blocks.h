// SHA-256 over whole blocks of 64 bytes (FIPS 180-4, 6.2.2).
#pragma once
#include <cstddef>
#include <cstdint>

namespace edgellm {

// Takes `blocks` blocks of `bytes` into the state, a to h.
using Sha256Blocks = void (*)(uint32_t state[8], const uint8_t* bytes, size_t blocks);

void sha256_portable(uint32_t state[8], const uint8_t* bytes, size_t blocks);
// By the processor's own instructions (ten times as fast on Zen 4); null where it has none.
Sha256Blocks sha256_hardware();

extern const uint32_t kSha256Rounds[64];

}  // namespace edgellm
