// AVX2 with AVX-VNNI (Alder Lake, Zen 5): the AVX2 sources again, vpmaddwd and vpaddd now one vpdpwssd.
#define EDGELLM_VNNI
#include "kernels/cpu/avx2/isa.cc"
