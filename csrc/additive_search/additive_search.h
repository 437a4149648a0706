// Beam search and local search over sums of codewords; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

namespace codeword {

constexpr int64_t ADDITIVE_MOST = 64;   // codebooks
constexpr int64_t ADDITIVE_ROWS = 128;  // rows that share each pass over the tables of a position

struct AdditiveSearch {
    const float* terms;  // (n, positions, width): |c|^2/2 - <x, c> of the last ``positions`` codebooks, +inf beyond size
    const float* gram;   // (positions, codebooks, size, width): <c^l_i, c^m_k> at [m][l][i][k]
    int64_t codebooks, positions, size, width;  // width: size padded to a multiple of 16
    int64_t assigned;    // leading positions the start already fills: codebooks - positions, or all
    int64_t beam, sweeps, states;  // states: in the start, a row
};

}  // namespace codeword

CODEWORD_EACH_TARGET(
    int64_t additive_scratch(const AdditiveSearch& search);
    // Rows start..stop-1. codes (n, beam, codebooks) and costs (n, beam) hold the start in their first ``states`` entries a row.
    void additive_search(const AdditiveSearch& search, int32_t* codes, double* costs, void* scratch, int64_t start, int64_t stop);
)
