// The midpoint-grid point closest in direction to given magnitudes; see README.md.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "target.h"

namespace codeword {

// Scratch of one row: two steps of 16 bytes, two float64, a float32 and an int32 a dimension.
inline constexpr size_t grid_code_scratch(size_t dim) { return (dim + 16) * (2 * 16 + 2 * 8 + 4 + 4); }

}  // namespace codeword

// grid_code: one row a (dim), 0..2^30, into out (dim), cells 0..K-1, K = cells in 2..256; good: the score of any code of it, or 0, which
// only saves time; scratch: grid_code_scratch(dim) bytes, aligned to 16. grid_score: of codes 0..2 half - 1 from adjust.
CODEWORD_EACH_TARGET(double grid_score(const int32_t* a, int64_t dim, int half, const uint16_t* codes);
                     void grid_code(const int32_t* a, int64_t dim, int cells, double good, uint8_t* out, void* scratch);)
