// Narrow rows (d <= NARROW): vector lanes hold rows, every codeword is met by all of them at once.
//
// The float32 sum of squared differences has an error relative to itself, so the best and the second best decide nearly every row; the
// winner's distance and the rows left over are computed by the definition, again a vector at a time.
#pragma once
#include "nearest/exact.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int NARROW = 12;
// k (d + 4) up to which this is faster than the screen of wider rows, as measured.
constexpr int64_t NARROW_WORK = VECTOR_BYTES == 64 ? 24576 : VECTOR_BYTES == 32 ? 6144 : 2048;

// Entry j of F32 rows in the lanes of a vector; row r of the tile starts at from[r * D]. Lanes without a row repeat the last one.
template <int D>
CODEWORD_INLINE void turn(const float* from, int64_t count, float* columns) {
    for (int64_t r = 0; r < F32; ++r) {
        const float* row = from + (r < count ? r : count - 1) * D;
        CODEWORD_UNROLL
        for (int j = 0; j < D; ++j) columns[j * F32 + r] = row[j];
    }
}

// The definition for F64 pairs at once: lane j % 8 of the definition is one vector here.
template <int D, class Left, class Right>
CODEWORD_INLINE f64v exact_lanes(Left left, Right right) {
    f64v lanes[LANES] = {};
    CODEWORD_UNROLL
    for (int j = 0; j < D; ++j) {
        f64v difference = left(j) - right(j);
        lanes[j % LANES] += difference * difference;
    }
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// One row against every codeword by the definition; columns: (D, F64 * blocks) float32, the codebook turned, padded with infinity.
template <int D>
__attribute__((noinline)) static void settle(const float* row, const float* columns, int64_t width, int64_t k, int64_t* index,
                                              float* distance) {
    f64v best = splat(__builtin_inf());
    i64v at{}, lane{};
    CODEWORD_UNROLL
    for (int i = 0; i < F64; ++i) lane[i] = i;
    for (int64_t block = 0; block < k; block += F64) {
        f64v d = exact_lanes<D>([&](int j) { return splat((double)row[j]); },
                                [&](int j) { return widen(load<f32h>(columns + j * width + block)); });
        i64v closer = d < best;
        best = closer ? d : best;
        at = closer ? lane + block : at;
    }
    double least = best[0];
    int64_t code = at[0];
    for (int i = 1; i < F64; ++i)
        if (best[i] < least || (best[i] == least && at[i] < code)) least = best[i], code = at[i];
    bool finite = true;
    CODEWORD_UNROLL
    for (int j = 0; j < D; ++j) finite &= row[j] - row[j] == 0;
    *index = finite ? code : 0;
    *distance = finite ? (float)least : __builtin_nanf("");
}

// Rows start..stop-1. turned: (D, width) as settle wants it.
template <int D>
CODEWORD_INLINE void narrow_rows(const float* codebook, const float* turned, int64_t width, int64_t k, const float* x, int64_t* indices,
                                 float* distances, int64_t start, int64_t stop) {
    constexpr int SETS = VECTOR_BYTES == 64 && D <= 8 ? 2 : 1;  // vectors of rows that share the loads of a codeword
    constexpr int64_t TILE = SETS * F32;
    // |computed - D| <= (D + 3) 2^-24 D + underflow, twice, and the definition's own error: far less than what is left beside it.
    const float factor = 1 + 4 * (D + 4) * 0x1p-24f, floor = 0x1p-120f;
    for (int64_t tile = start; tile < stop; tile += TILE) {
        float columns[SETS][D * F32];
        f32v rows[SETS][D], best[SETS], second[SETS];
        i32v at[SETS];
        CODEWORD_UNROLL
        for (int s = 0; s < SETS; ++s) {
            int64_t from = tile + s * F32 < stop ? tile + s * F32 : stop - 1;
            turn<D>(x + from * D, stop - from < F32 ? stop - from : F32, columns[s]);
            CODEWORD_UNROLL
            for (int j = 0; j < D; ++j) rows[s][j] = load<f32v>(columns[s] + j * F32);
            best[s] = second[s] = splat(__builtin_inff());
            at[s] = i32v{};
        }
        i32v code{};
        const float* c = codebook;
        for (int64_t i = 0; i < k; ++i, c += D, code += 1) {
            f32v sum[SETS];
            CODEWORD_UNROLL
            for (int j = 0; j < D; ++j) {
                f32v entry = splat(c[j]);
                CODEWORD_UNROLL
                for (int s = 0; s < SETS; ++s) {
                    f32v difference = rows[s][j] - entry;
                    sum[s] = j ? fma(difference, difference, sum[s]) : difference * difference;
                }
            }
            CODEWORD_UNROLL
            for (int s = 0; s < SETS; ++s) {
                at[s] = sum[s] < best[s] ? code : at[s];
                second[s] = min(second[s], max(best[s], sum[s]));
                best[s] = min(best[s], sum[s]);
            }
        }
        CODEWORD_UNROLL
        for (int s = 0; s < SETS; ++s) {
            int64_t from = tile + s * F32, count = stop - from < F32 ? stop - from : F32;
            if (count <= 0) break;
            // Not so where there is NaN or infinity.
            uint32_t sure = any_of((best[s] < splat(1e37f)) & (second[s] > best[s] * factor + floor));
            float winners[D * F32], exact[F32];
            int32_t codes[F32];
            store(codes, at[s]);
            for (int r = 0; r < F32; ++r) {
                CODEWORD_UNROLL
                for (int j = 0; j < D; ++j) winners[j * F32 + r] = codebook[codes[r] * D + j];
            }
            CODEWORD_UNROLL
            for (int half = 0; half < F32; half += F64) {
                f64v d = exact_lanes<D>([&](int j) { return widen(load<f32h>(columns[s] + j * F32 + half)); },
                                        [&](int j) { return widen(load<f32h>(winners + j * F32 + half)); });
                store(exact + half, narrow(d));
            }
            for (int64_t r = 0; r < count; ++r) {
                indices[from + r] = codes[r];
                distances[from + r] = exact[r];
            }
            for (uint32_t left = ~sure & (uint32_t)((uint64_t{1} << count) - 1); left; left &= left - 1) {
                int64_t row = from + __builtin_ctz(left);
                settle<D>(x + row * D, turned, width, k, indices + row, distances + row);
            }
        }
    }
}

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
