// Indices to and from one little-endian bit string; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

CODEWORD_EACH_TARGET(
    // Rows start..stop-1 of indices (rows, positions), whose type has kind bytes a value (1, 2 unsigned; 4, 8 signed), into bytes, which
    // the caller zeroed. start is a multiple of 8, so that chunks begin on whole bytes. False where an index does not fit its width.
    bool pack(const void* indices, int kind, const int64_t* widths, int64_t positions, int64_t row_bits, uint8_t* bytes,
              int64_t start, int64_t stop);
    // The inverse; size is the number of bytes.
    void unpack(const uint8_t* bytes, int64_t size, const int64_t* widths, int64_t positions, int64_t row_bits, void* indices, int kind,
                int64_t start, int64_t stop);
)
