// Sums of rows by label, in row order; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

CODEWORD_EACH_TARGET(
    // Adds columns start..stop-1 of the rows of x (n, d), times their weights where there are any, to sums (segments, d).
    void segment_sum(const float* x, const int64_t* labels, const float* weights, double* sums, int64_t n, int64_t d,
                     int64_t start, int64_t stop);
    // Adds the weights (1 where there are none) to counts (segments,).
    void segment_count(const int64_t* labels, const float* weights, double* counts, int64_t n);
    // Whether all labels are in 0..segments-1.
    bool labels_fit(const int64_t* labels, int64_t n, int64_t segments);
)
