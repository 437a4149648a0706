// Points of the pyramid sum |y_i| = K: projection, numbering and back; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

namespace codeword {

// Largest group width.
inline constexpr int64_t PYRAMID_DIM = 1024;

// counts and sums: (dim, pulses + 1), rows for 0..dim-1 further coordinates.
struct PyramidTables {
    const int64_t* counts;
    const int64_t* sums;
    int64_t dim, pulses;
};

}  // namespace codeword

// n groups of x (n, dim), dim <= PYRAMID_DIM; scratch: 2 dim vectors of 64 bytes, aligned to 64.
CODEWORD_EACH_TARGET(void pyramid_project(const float* x, int64_t n, int64_t dim, int64_t pulses, int64_t* points, double* gains, void* scratch);)
// Points whose L1 norm is pulses.
CODEWORD_EACH_TARGET(void pyramid_number(const int64_t* points, int64_t n, const PyramidTables& tables, int64_t* index);)
// Indices in 0..N-1.
CODEWORD_EACH_TARGET(void pyramid_point(const int64_t* index, int64_t n, const PyramidTables& tables, int64_t* points);)
