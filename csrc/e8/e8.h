// The nearest point of the E8P codebook; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

namespace codeword {

// Tables of the 256 patterns, filled by e8_tables; aligned to 64 bytes.
struct E8Tables {
    alignas(64) float pattern[8][256];  // coordinates in quarters
    alignas(64) float norm[256];        // 512 |p|^2
    alignas(64) float flip[2][256];     // 2 where that many negatives (mod 2) leave the coordinate sum odd, else 0
    alignas(64) float sign[8][256];     // of byte b
    alignas(64) float shift[256];       // of byte b, in quarters
};

}  // namespace codeword

// Rows of x (rows, 8) int32 within +-2^16 into out (rows).
CODEWORD_EACH_TARGET(void e8_nearest(const int32_t* x, int64_t rows, const E8Tables& tables, int64_t* out);)
