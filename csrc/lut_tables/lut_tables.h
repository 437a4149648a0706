// Look-up tables of queries against codebooks; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

// One book: out[q * out_stride + k] = first[k] + factor <query_q, c_k>, queries (count) of dim floats query_stride apart; codebook
// (dim, size): coordinates first; first (size) or null.
CODEWORD_EACH_TARGET(void lut_tables(const float* queries, int64_t count, int64_t query_stride, const float* codebook, int64_t size, int64_t dim,
                                     double factor, const double* first, float* out, int64_t out_stride);)
