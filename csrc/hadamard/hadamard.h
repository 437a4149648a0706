// Orthonormal Walsh-Hadamard transform of rows; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

// Rows start..stop-1 of x (n, width) into out, width a power of two; scale is float32(1 / sqrt(width)).
CODEWORD_EACH_TARGET(void hadamard(const float* x, float* out, int64_t width, float scale, int64_t start, int64_t stop);)
