// AVX-512 with VNNI, VBMI and VBMI2 (Ice Lake, Zen 4): the AVX-512 sources again, where sums of products of bytes are one
// instruction, and so are expanding and permuting bytes.
#define EDGELLM_VNNI
#include "kernels/cpu/avx512/isa.cc"
