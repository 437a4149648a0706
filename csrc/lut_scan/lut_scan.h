// Top-k over codes whose distances are sums of table look-ups; see README.md.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "target.h"

namespace codeword {

constexpr int64_t LUT_BLOCK = 32;
constexpr int64_t LUT_WAITING = 1024;
constexpr int LUT_QUERIES = 8;  // at most so many share a pass over the codes

// Codes of rows / 32 blocks (layouts: src/codeword/ops/lut_blocks.py) and what the rows add to their sums.
struct LutBlocks {
    const void* codes;
    const float* terms;      // (rows) or null
    const uint8_t* allowed;  // (rows) or null
    int64_t books, size;     // look-ups a row, entries a table
    int width;               // bits of a stored code: 4, 8, 16
};

// A row whose distance is not known yet: at least `low`.
struct LutCandidate {
    int64_t row;
    float low, coarse;
};

// One query: its tables (books, size), room for their rounded copies, the k best of the rows looked at twice, and those that wait for it.
struct LutQuery {
    const float* tables;
    uint8_t* bytes;            // lut_bytes()
    float* distances;          // (k)
    int64_t* rows;             // (k)
    float* highs;              // (k) the least upper bounds so far
    LutCandidate* candidates;  // (LUT_WAITING + k)
    int64_t k, count, bounded, waiting;  // in distances and rows, in highs, in candidates
    double lowest, step, inverse, magnitude;  // lowest + step * (sum of bytes) <= sum < that + step * books, but for rounding
    int64_t seen;              // blocks
};

// Bytes of the rounded tables of a query.
inline size_t lut_bytes(int64_t books, int64_t size, int width) {
    size_t m = static_cast<size_t>(books);
    return width == 4 ? (m + 3) / 4 * 64 : width == 8 ? m * 256 : (m * static_cast<size_t>(size) + 63) / 64 * 64;
}

}  // namespace codeword

// Round the tables of a query and empty its heap.
CODEWORD_EACH_TARGET(void lut_start(const LutBlocks& blocks, LutQuery& query);)
// Rows start..stop (start a multiple of 32) for count queries, to whose sums coarse[i] is added.
CODEWORD_EACH_TARGET(void lut_span(const LutBlocks& blocks, LutQuery* queries, int count, int64_t start, int64_t stop, const float* coarse);)
// Offer what another part of the same query found.
CODEWORD_EACH_TARGET(void lut_merge(LutQuery& query, const LutQuery& other);)
// Look again at all that waits; then the heap holds the k best.
CODEWORD_EACH_TARGET(void lut_settle(const LutBlocks& blocks, LutQuery& query);)
// Sort the heap and pad it.
CODEWORD_EACH_TARGET(void lut_finish(LutQuery& query);)
