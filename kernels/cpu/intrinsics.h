// The compiler's intrinsics, or, for tests on a processor without them, functions that mean the same, from a header that
// EDGELLM_INTRINSICS names.
#pragma once

#ifdef EDGELLM_INTRINSICS
#include EDGELLM_INTRINSICS
#else
#pragma GCC diagnostic push
#ifndef __clang__  // GCC 12 warns of its own header's undefined registers
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
// Pins a vector to a register here.
#define EDGELLM_KEEP(vector) __asm__("" : "+v"(vector))
#endif
