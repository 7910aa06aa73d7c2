// numpy's default generator, so that a seed draws here what it draws in Python: PCG64 (O'Neill, pcg-random.org, XSL-RR
// 128/64), seeded through numpy's SeedSequence.
#pragma once
#include <cstdint>

namespace edgellm {

class Random {
 public:
  explicit Random(uint64_t seed);
  // From [0, 1), 53 bits.
  double uniform();

 private:
  __extension__ using Wide = unsigned __int128;
  void step();
  Wide state_ = 0, increment_ = 0;
};

}  // namespace edgellm
