// Top-k of one query over spans of blocks of sign-and-magnitude codes; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

namespace codeword {

// The packed rows (layout: src/codeword/ops/bit_blocks.py). eights = ceil(dim / 8), groups = ceil(dim / 32), width = 4 (bits - 1) groups.
struct BitBlocks {
    const uint8_t* planes;        // (rows / 32, eights, 32)
    const float* factors;         // (rows / 32, 3, 32)
    const float* centers;         // (rows / 32)
    const uint8_t* rest;          // (rows, width)
    const float* rest_factors;    // (rows, 3)
    const uint8_t* allowed;       // (rows) or null
    int64_t eights, groups, width;
    int bits;
};

struct BitQuery {
    const int8_t* z1;      // (8 eights), sums of |z1| over four neighbours <= 127
    const int16_t* z;      // (32 groups); (2^bits - 1) |z| sums to less than 2^31 in each of eight lanes
    float step1, step2, offset, slack;
    bool l2;
};

}  // namespace codeword

// spans (probes, 2) and coarse (probes); tables: scratch of 32 eights bytes. distances and rows (k) receive the result, padded.
CODEWORD_EACH_TARGET(void bit_scan(const BitBlocks& blocks, const BitQuery& query, const int64_t* spans, const float* coarse, int64_t probes,
                                   int64_t k, uint8_t* tables, float* distances, int64_t* rows);)
