// Top-k of queries over spans of blocks of sign-and-magnitude codes; see README.md.
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

// A row that may enter: its lower bound and its distance.
struct BitCandidate {
    float bound, distance;
    int64_t row;
};

// The k least (distance, row) so far: heap of count entries in arrays of k.
struct BitBest {
    float* distances;
    int64_t* rows;
    int64_t k, count;
};

constexpr int64_t BIT_SHARED = 4;  // queries that may read a code together

}  // namespace codeword

// scratch: bit_scan_scratch bytes a query, 64-byte aligned.
//
// bit_scan: together (1..BIT_SHARED) queries with the same spans (probes, 2); coarse, distances and rows follow each other a query.
// bit_collect: candidates of rows start..stop of one span of one query against a k-th distance that later ones can only lower, in order of
// rows; out holds stop - start; fresh: scratch does not hold this query yet. bit_replay: what bit_scan does with them in that order. bit_finish: sorts and pads.
CODEWORD_EACH_TARGET(
    // A rotated query (n) in integers: z1 (8 ceil(n/8)), z (32 ceil(n/32), for bits > 1), their steps (2).
    void bit_round(const float* rotated, int64_t n, int bits, int8_t* z1, int16_t* z, float* steps);
    // |x|^2 in float64, eight lanes; and rounded once, NaN where an entry is not finite.
    double bit_square(const float* x, int64_t n);
    float bit_norm(const float* x, int64_t n);
    int64_t bit_scan_scratch(const BitBlocks& blocks);
    void bit_scan(const BitBlocks& blocks, const BitQuery* queries, int64_t together, const int64_t* spans, const float* coarse, int64_t probes,
                  int64_t k, uint8_t* scratch, float* distances, int64_t* rows);
    int64_t bit_collect(const BitBlocks& blocks, const BitQuery& query, int64_t start, int64_t stop, float coarse, float worst, uint8_t* scratch,
                        bool fresh, BitCandidate* out);
    void bit_replay(const BitCandidate* candidates, int64_t count, BitBest& best);
    void bit_finish(BitBest& best);)
