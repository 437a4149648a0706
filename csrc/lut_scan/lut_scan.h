// Top-k over codes whose distances are sums of table look-ups; see README.md.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "target.h"

namespace codeword {

constexpr int64_t LUT_BLOCK = 32;
constexpr int LUT_QUERIES = 8;  // at most so many share a pass over the codes

// Codes of rows / 32 blocks (layouts: src/codeword/ops/lut_blocks.py) and what the rows add to their sums.
struct LutBlocks {
    const void* codes;
    const float* terms;      // (rows) or null
    const uint8_t* allowed;  // (rows) or null
    int64_t books, size;     // look-ups a row, entries a table
    int width;               // bits of a stored code: 4, 8, 16
};

// One query: its tables (books, size), room for their rounded copies, and the k best of the rows it has seen.
struct LutQuery {
    const float* tables;
    uint8_t* bytes;          // lut_bytes()
    float* distances;        // (k)
    int64_t* rows;           // (k)
    int64_t k, count;
    double lowest, step, inverse, magnitude;  // of the rounded tables: sum >= lowest + step * (sum of bytes)
    int64_t seen;            // blocks
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
// Sort the heap and pad it.
CODEWORD_EACH_TARGET(void lut_finish(LutQuery& query);)
