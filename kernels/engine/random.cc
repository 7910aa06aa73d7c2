#include "kernels/engine/random.h"

namespace edgellm {
namespace {

// SeedSequence's hash: every call moves its constant on.
struct Hash {
  uint32_t constant, multiplier;

  uint32_t operator()(uint32_t value) {
    value ^= constant;
    constant *= multiplier;
    value *= constant;
    return value ^ value >> 16;
  }
};

uint32_t mix(uint32_t x, uint32_t y) {
  const uint32_t mixed = 0xca01f9ddU * x - 0x4973f715U * y;
  return mixed ^ mixed >> 16;
}

}  // namespace

Random::Random(uint64_t seed) {
  uint32_t pool[4] = {uint32_t(seed), uint32_t(seed >> 32), 0, 0};
  Hash in{0x43b0d7e5U, 0x931e8875U};
  for (uint32_t& word : pool) word = in(word);
  for (int from = 0; from < 4; ++from)
    for (int to = 0; to < 4; ++to)
      if (from != to) pool[to] = mix(pool[to], in(pool[from]));
  Hash out{0x8b51f9ddU, 0x58f38dedU};
  uint64_t words[4];
  for (int i = 0; i < 4; ++i) {
    const uint64_t low = out(pool[2 * i % 4]);
    words[i] = low | uint64_t(out(pool[(2 * i + 1) % 4])) << 32;
  }
  increment_ = (Wide(words[2]) << 64 | words[3]) << 1 | 1;
  step();
  state_ += Wide(words[0]) << 64 | words[1];
  step();
}

void Random::step() {
  constexpr Wide kMultiplier = Wide(2549297995355413924U) << 64 | 4865540595714422341U;
  state_ = state_ * kMultiplier + increment_;
}

double Random::uniform() {
  step();
  const uint64_t folded = uint64_t(state_ >> 64) ^ uint64_t(state_);
  const int turn = int(state_ >> 122);
  const uint64_t bits = folded >> turn | folded << (-turn & 63);
  return double(bits >> 11) * 0x1p-53;
}

}  // namespace edgellm
