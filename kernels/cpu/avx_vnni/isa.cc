// AVX2 with AVX-VNNI (Alder Lake, Zen 5): the AVX2 sources again, a product and its addition now one vpdpwssd or vpdpbusd.
#define EDGELLM_VNNI
#include "kernels/cpu/avx2/isa.cc"
