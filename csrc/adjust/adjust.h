// Grid codes found by coordinate sweeps, one segment of the columns at a time; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

namespace codeword {

struct AdjustTask {
    const float* rows;      // (n, width)
    void* codes;            // (n, width), uint8 or uint16
    double* sums;           // (n, segments, 3): <|x|, odd>, |odd|^2, |x|^2
    const double* steps;    // (n, segments), or null: the kernel's own start
    const int64_t* starts;  // (segments + 1) columns at which segments begin
    const int64_t* bits;    // (segments), 1..13
    int64_t width, segments, rounds;
    bool wide;              // codes are uint16
};

// Largest uniform step that is near the optimum for a unit Gaussian, by bits - 1 (Max 1960; beyond 9 bits by its asymptote).
constexpr double adjust_steps[13] = {1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308, 0.0166, 0.00890, 0.00475,
                                            0.00252, 0.00133};

}  // namespace codeword

// Floats of scratch for a longest segment of `longest` columns.
CODEWORD_EACH_TARGET(int64_t adjust_scratch(int64_t longest);
                     void adjust(const AdjustTask& task, int64_t start, int64_t stop, float* scratch);)
