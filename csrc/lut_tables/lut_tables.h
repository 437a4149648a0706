// Look-up tables of queries against codebooks; see README.md.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "target.h"

namespace codeword {

// Doubles of scratch that one call of lut_tables needs.
inline size_t lut_tables_scratch(int64_t size, int64_t dim) { return static_cast<size_t>((size + 7) / 8 * 8) * static_cast<size_t>(dim + 1); }

}  // namespace codeword

// One book: out[q * out_stride + k] = factor <query_q, c_k> (+ |c_k|^2 with squares), queries (count) of dim floats query_stride apart,
// codebook (size, dim).
CODEWORD_EACH_TARGET(void lut_tables(const float* queries, int64_t count, int64_t query_stride, const float* codebook, int64_t size, int64_t dim,
                                     double factor, bool squares, float* out, int64_t out_stride, double* scratch);)
