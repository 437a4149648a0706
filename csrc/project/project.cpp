// Products of float32 values are exact in float64, so a fused multiply-add and two operations give the same sum.
#include "project/project.h"

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int PANEL = 2 * F64;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 12;
#elif defined(__AVX2__)
constexpr int ROWS = 6;
#else
constexpr int ROWS = 4;
#endif
constexpr int64_t TILE = 4 * ROWS;  // rows that share each pass over the matrix

// ROWS rows times one panel; store is for real outputs only.
CODEWORD_INLINE void multiply(const double* tile, const double* panel, int64_t d, float* out, int64_t m, int64_t rows, int64_t columns) {
    f64v sums[ROWS][2] = {};
    for (int64_t j = 0; j < d; ++j) {
        f64v a = load<f64v>(panel), b = load<f64v>(panel + F64);
        CODEWORD_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            f64v x = splat(tile[r]);
            sums[r][0] = fma(x, a, sums[r][0]);
            sums[r][1] = fma(x, b, sums[r][1]);
        }
        panel += PANEL;
        tile += ROWS;
    }
    CODEWORD_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        if (r >= rows) break;
        float values[PANEL];
        store(values, narrow(sums[r][0]));
        store(values + F64, narrow(sums[r][1]));
        if (columns == PANEL) memcpy(out + r * m, values, sizeof(values));
        else
            for (int64_t c = 0; c < columns; ++c) out[r * m + c] = values[c];
    }
}

}  // namespace

int64_t project_panel() { return PANEL; }

void project_prepare(const float* matrix, double* panels, int64_t m, int64_t d, int64_t start, int64_t stop) {
    for (int64_t p = start; p < stop; ++p) {
        double* panel = panels + p * d * PANEL;
        for (int64_t lane = 0; lane < PANEL; ++lane) {
            int64_t i = p * PANEL + lane;
            for (int64_t j = 0; j < d; ++j) panel[j * PANEL + lane] = i < m ? matrix[i * d + j] : 0;
        }
    }
}

int64_t project_scratch(int64_t d) { return TILE * d; }

void project_rows(const float* x, const double* panels, float* out, int64_t m, int64_t d, double* scratch, int64_t start, int64_t stop) {
    for (int64_t at = start; at < stop; at += TILE) {
        int64_t count = stop - at < TILE ? stop - at : TILE;
        for (int64_t r = 0; r < TILE; ++r) {
            double* block = scratch + r / ROWS * ROWS * d + r % ROWS;
            const float* row = x + (at + r) * d;
            for (int64_t j = 0; j < d; ++j) block[j * ROWS] = r < count ? row[j] : 0;
        }
        for (int64_t p = 0; p * PANEL < m; ++p) {
            int64_t columns = m - p * PANEL < PANEL ? m - p * PANEL : PANEL;
            for (int64_t base = 0; base < count; base += ROWS)
                multiply(scratch + base * d, panels + p * d * PANEL, d, out + (at + base) * m + p * PANEL, m, count - base, columns);
        }
    }
}

void project_one(const float* x, const float* matrix, float* out, int64_t d, int64_t start, int64_t stop) {
    constexpr int SIDE = 8;  // independent sums hide the latency of each
    for (int64_t base = start; base < stop; base += SIDE) {
        const float* rows[SIDE];
        for (int i = 0; i < SIDE; ++i) rows[i] = matrix + (base + i < stop ? base + i : base) * d;
        double sums[SIDE] = {};
        for (int64_t j = 0; j < d; ++j) {
            double v = x[j];
            CODEWORD_UNROLL
            for (int i = 0; i < SIDE; ++i) sums[i] += v * rows[i][j];
        }
        for (int i = 0; i < SIDE && base + i < stop; ++i) out[base + i] = (float)sums[i];
    }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
