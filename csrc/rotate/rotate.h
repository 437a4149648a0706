// Random rotation by signs, Hadamard transforms and Kac steps; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

// Rows start..stop-1 of x (n, width) into out, any width >= 1. size is the largest power of two <= width, scale float32(1 / sqrt(size)),
// signs (4, width).
CODEWORD_EACH_TARGET(void rotate(const float* x, const float* signs, float* out, int64_t width, int64_t size, float scale, bool inverse,
                                 int64_t start, int64_t stop);)
