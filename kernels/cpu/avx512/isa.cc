// AVX-512: F, BW, VL and DQ, with F16C and FMA.
#include "kernels/cpu/avx512/accumulate.h"
#include "kernels/cpu/avx512/attention.h"
#include "kernels/cpu/avx512/decode.h"
#include "kernels/cpu/avx512/exponentials.h"
#include "kernels/cpu/avx512/quantize.h"
#include "kernels/cpu/avx512/unpack.h"
#include "kernels/cpu/widen.h"

namespace edgellm::EDGELLM_AVX512 {
constexpr Isa all(const char* name) {
  return {name,
          decoder,
          arrange,
          unpack,
          accumulate,
          quantize,
          scores<float>,
          mix<float>,
          scores<uint16_t>,
          mix<uint16_t>,
          scores<int8_t>,
          mix<int8_t>,
          largest,
          exponentials,
          silu,
          gelu_tanh,
          to_half,
          from_half,
          from_int8,
          to_floats<true>,
          to_floats<false>};
}
}  // namespace edgellm::EDGELLM_AVX512

namespace edgellm {
#ifdef EDGELLM_VNNI
const Isa kAvx512Vnni = avx512_vnni::all("avx512_vnni");
#else
const Isa kAvx512 = avx512::all("avx512");
#endif
}  // namespace edgellm
