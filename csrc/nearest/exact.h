// The definition of the distance: float64, eight interleaved lanes, no fused operations (the square of a difference is not exact).
#pragma once
#include "nearest/nearest.h"
#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int LANES = 8;
constexpr int PARTS = LANES / F64 > 0 ? LANES / F64 : 1;  // vectors that make the eight lanes
static_assert(F64 <= LANES, "the eight lanes fill whole vectors");

// Squared distance of xd (float64, padded with zeros to a multiple of 8) and the codeword c (d entries, readable up to that multiple).
CODEWORD_INLINE double exact_distance(const double* xd, const float* c, int64_t d) {
    f64v lanes[PARTS] = {};
    int64_t whole = d & ~int64_t{7};
    for (int64_t j = 0; j < whole; j += LANES) {
        CODEWORD_UNROLL
        for (int p = 0; p < PARTS; ++p) {
            f64v difference = load<f64v>(xd + j + p * F64) - widen(load<f32h>(c + j + p * F64));
            lanes[p] += difference * difference;
        }
    }
    if (whole < d) {
        CODEWORD_UNROLL
        for (int p = 0; p < PARTS; ++p) {
            i64v lane{};
            CODEWORD_UNROLL
            for (int i = 0; i < F64; ++i) lane[i] = p * F64 + i;
            // What stands behind the codeword is another one, perhaps with NaN: clear it bit by bit.
            f64v inside = (f64v)((i64v)widen(load<f32h>(c + whole + p * F64)) & (lane < (i64v{} + (d - whole))));
            f64v difference = load<f64v>(xd + whole + p * F64) - inside;
            lanes[p] += difference * difference;
        }
    }
    double l[LANES];
    CODEWORD_UNROLL
    for (int p = 0; p < PARTS; ++p) store(l + p * F64, lanes[p]);
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

struct Best {
    double distance;
    int64_t index;
};

CODEWORD_INLINE void consider(const NearestBook& book, const double* xd, int64_t code, Best& best) {
    const float* c = code >= book.tail_start ? book.tail + (code - book.tail_start) * book.d : book.codebook + code * book.d;
    double distance = exact_distance(xd, c, book.d);
    if (distance < best.distance || (distance == best.distance && code < best.index)) best = {distance, code};
}

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
