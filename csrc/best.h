// The k least (distance, row) in that total order: a heap with the largest on top, in arrays of the caller.
#pragma once
#include <math.h>

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

CODEWORD_INLINE bool before(float d, int64_t r, float e, int64_t s) { return d < e || (d == e && r < s); }

struct Best {
    float* distances;
    int64_t* rows;
    int64_t k, count;

    float worst() const { return count < k ? INFINITY : distances[0]; }

    // Neither infinity nor NaN is a distance of anything.
    void offer(float d, int64_t r) {
        if (!(d < INFINITY)) return;
        if (count < k) {
            int64_t i = count++;
            while (i) {
                int64_t up = (i - 1) / 2;
                if (!before(distances[up], rows[up], d, r)) break;
                distances[i] = distances[up];
                rows[i] = rows[up];
                i = up;
            }
            distances[i] = d;
            rows[i] = r;
        } else if (before(d, r, distances[0], rows[0])) {
            sink(d, r, k);
        }
    }

    // Put (d, r) in place of the top of a heap of n. Which child is larger cannot be predicted: it is computed, not branched on.
    void sink(float d, int64_t r, int64_t n) {
        int64_t i = 0, down = 1;
        for (; down + 1 < n; down = 2 * i + 1) {
            const float a = distances[down], b = distances[down + 1];
            down += static_cast<int64_t>((a < b) | ((a == b) & (rows[down] < rows[down + 1])));
            if (!before(d, r, distances[down], rows[down])) break;
            distances[i] = distances[down];
            rows[i] = rows[down];
            i = down;
        }
        if (down + 1 == n && down == 2 * i + 1 && before(d, r, distances[down], rows[down])) {  // a last child without a neighbour
            distances[i] = distances[down];
            rows[i] = rows[down];
            i = down;
        }
        distances[i] = d;
        rows[i] = r;
    }

    // Ascending, padded with +inf and -1.
    void finish() {
        for (int64_t n = count - 1; n > 0; --n) {
            float d = distances[n];
            int64_t r = rows[n];
            distances[n] = distances[0];
            rows[n] = rows[0];
            sink(d, r, n);
        }
        for (int64_t i = count; i < k; ++i) {
            distances[i] = INFINITY;
            rows[i] = -1;
        }
    }
};

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
