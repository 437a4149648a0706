// Products of rows with a matrix in float64, ascending; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

CODEWORD_EACH_TARGET(
    // Outputs a panel.
    int64_t project_panel();
    // Panels start..stop-1 of matrix (m, d) in float64: (panels, d, panel width), padded with zeros.
    void project_prepare(const float* matrix, double* panels, int64_t m, int64_t d, int64_t start, int64_t stop);
    // Float64 entries of scratch memory that one call of project_rows needs.
    int64_t project_scratch(int64_t d);
    // Rows start..stop-1 of x (n, d) times the panels, into out (n, m).
    void project_rows(const float* x, const double* panels, float* out, int64_t m, int64_t d, double* scratch, int64_t start, int64_t stop);
    // Outputs start..stop-1 of one row, from the matrix as it is: cheaper than panels for few rows.
    void project_one(const float* x, const float* matrix, float* out, int64_t d, int64_t start, int64_t stop);
)
