// Top-k of a query over spans of blocks of codes in segments with their own numbers of bits; see README.md.
#pragma once
#include <stdint.h>

#include "bit_scan/bit_scan.h"
#include "target.h"

namespace codeword {

constexpr int64_t SEGMENTS = 64;  // at most

// Where a segment of n dimensions lies: bytes of planes and of rest a row, entries of z1 and z of a query, place in rest_factors (or -1).
struct SegmentPart {
    int64_t eights, groups, plane, rest, z1, z, factor;
    int bits;
};

// The packed rows (layout: src/codeword/ops/segment_blocks.py).
struct SegmentBlocks {
    const uint8_t* planes;         // (rows / 32, eights, 32)
    const float* factors;          // (rows / 32, 1 + 2 count, 32)
    const float* centers;          // (rows / 32)
    const uint8_t* rest;           // (rows, width)
    const float* rest_factors;     // (rows, 2 refined)
    const uint8_t* allowed;        // (rows) or null
    const SegmentPart* parts;      // (count)
    int64_t count, eights, width, refined;
};

struct SegmentQuery {
    const int8_t* z1;
    const int16_t* z;
    const float* scalars;  // offset, then step1, step2, noise, unseen of each segment
    bool l2;
};

}  // namespace codeword

// scratch: segment_scan_scratch bytes, 64-byte aligned. segment_collect: as bit_collect, for bit_replay.
CODEWORD_EACH_TARGET(
    int64_t segment_scan_scratch(const SegmentBlocks& blocks);
    void segment_scan(const SegmentBlocks& blocks, const SegmentQuery& query, const int64_t* spans, const float* coarse, int64_t probes, int64_t k,
                      uint8_t* scratch, float* distances, int64_t* rows);
    int64_t segment_collect(const SegmentBlocks& blocks, const SegmentQuery& query, int64_t start, int64_t stop, float coarse, float worst,
                            uint8_t* scratch, bool fresh, BitCandidate* out);)
