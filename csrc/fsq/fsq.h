// Finite scalar quantization of rows, and its smooth curve; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

namespace codeword {

constexpr int64_t FSQ_DIMS = 32;    // dimensions of a token, at most
constexpr int64_t FSQ_TOKENS = 16;  // tokens of a block: whole vectors of lanes on every target, whatever the number of dimensions

// Constants of each number of a block, FSQ_TOKENS * dims of them, aligned to 64 bytes; edges: FSQ_TOKENS * dims for each edge.
struct FsqTables {
    const float *edges, *shift, *rise, *steps;
    const uint32_t* radix;
    int64_t dims, edge_count;
};

}  // namespace codeword

CODEWORD_EACH_TARGET(
    void fsq_round(const float* z, int64_t tokens, const FsqTables& tables, int64_t* index, float* values, float* shifted);
    void fsq_curve(const float* curve, const float* values, int64_t tokens, int64_t dims, const float* scale, const float* base, float* slope, float* gap);)
