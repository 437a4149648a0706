// The same rows against a codebook that moved (k-means): groups of codewords that certainly stayed behind the row's own are left out.
//
// Per row and group of consecutive codewords a lower bound of the distance to all of them but the row's own (Ding et al. 2015, "Yinyang
// k-means", with groups as they lie). A codebook move by at most s lowers it by s. Only groups whose bound does not exceed the distance
// to the row's own codeword are scored: in float32, where the sum of squared differences has an error relative to itself, then by the
// definition. What is left out could not have won, so the result is that of nearest.
#pragma once
#include "nearest/exact.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr float DOWN = 1 - 0x1p-20f, UP = 1 + 0x1p-20f;  // more than any rounding of a square root, a sum of two, a change of type

// A lower bound of the distance from one of its square; 0 says nothing.
CODEWORD_INLINE float bound_of(double square) { return square > 1e-36 ? (float)__builtin_sqrt(square) * DOWN : 0.0f; }

CODEWORD_INLINE float total(f32v v) {
    if constexpr (F32 > 8) v = v + swap<8 % F32>(v);
    if constexpr (F32 > 4) v = v + swap<4 % F32>(v);
    v = v + swap<2>(v);
    v = v + swap<1>(v);
    return v[0];
}

// Sums of squared differences of x and four codewords, in float32.
CODEWORD_INLINE void four_distances(const float* x, const float* const c[4], int64_t d, float* out) {
    f32v sums[4] = {};
    int64_t j = 0;
    for (; j + F32 <= d; j += F32) {
        f32v v = load<f32v>(x + j);
        CODEWORD_UNROLL
        for (int i = 0; i < 4; ++i) {
            f32v difference = v - load<f32v>(c[i] + j);
            sums[i] = fma(difference, difference, sums[i]);
        }
    }
    CODEWORD_UNROLL
    for (int i = 0; i < 4; ++i) out[i] = total(sums[i]);
    for (; j < d; ++j) {
        CODEWORD_UNROLL
        for (int i = 0; i < 4; ++i) out[i] += (x[j] - c[i][j]) * (x[j] - c[i][j]);
    }
}

// A group that was scored: its two least bounds, of which one may be the row's new codeword.
struct Scored {
    int64_t group, nearest;
    float least, second;
};

struct Tracked {
    Scored* scored;  // (groups,)
    double* exact;   // the row, padded to a multiple of 8
};

// One row. False where so many groups are open that scoring all codewords at once is faster; bounds are lowered in any case.
CODEWORD_INLINE bool track_row(const NearestBook& book, const Moves& moves, const Tracked& s, const float* row, int64_t* index,
                               float* distance, float* bounds) {
    int64_t d = book.d, own = *index, count = 0, j = 0;
    for (; j + F64 <= d; j += F64) store(s.exact + j, widen(load<f32h>(row + j)));
    for (; j < d; ++j) s.exact[j] = row[j];
    for (; j % LANES; ++j) s.exact[j] = 0;
    Best best = {__builtin_inf(), INT64_MAX};
    consider(book, s.exact, own, best);
    double own_square = best.distance;
    bool usable = own_square < 1e36;
    float reach = usable ? (float)__builtin_sqrt(own_square) * UP : __builtin_inff();
    int64_t home = own / moves.codes_per_group;
    int64_t g = 0;
    for (; g + F32 <= moves.group_count; g += F32) {
        f32v lowered = (load<f32v>(bounds + g) - load<f32v>(moves.shifts + g)) * DOWN;
        store(bounds + g, lowered);
        for (uint32_t open = any_of(~(lowered > splat(reach))) & (uint32_t)((uint64_t{1} << F32) - 1); open; open &= open - 1)
            s.scored[count++].group = g + __builtin_ctz(open);
    }
    for (; g < moves.group_count; ++g) {
        bounds[g] = (bounds[g] - moves.shifts[g]) * DOWN;
        if (!(bounds[g] > reach)) s.scored[count++].group = g;
    }
    if (!usable || count > moves.most) return false;
    bool home_scored = false;
    // Every rounding is relative to a sum of squares that are not negative; small sums may have lost all to underflow.
    double shrink = 1 - 2 * (d + 8) * 0x1p-24, lost = d * 0x1p-120;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        Scored group = {s.scored[i].group, -1, __builtin_inff(), __builtin_inff()};
        if (bounds[group.group] > (float)__builtin_sqrt(best.distance) * UP) continue;  // closed by a better codeword
        home_scored |= group.group == home;
        int64_t from = group.group * moves.codes_per_group;
        int64_t to = from + moves.codes_per_group < book.k ? from + moves.codes_per_group : book.k;
        for (int64_t code = from; code < to; code += 4) {
            const float* c[4];
            float squares[4];
            CODEWORD_UNROLL
            for (int q = 0; q < 4; ++q) c[q] = book.codebook + (code + q < to ? code + q : to - 1) * d;
            four_distances(row, c, d, squares);
            for (int q = 0; q < 4 && code + q < to; ++q) {
                double low = squares[q] < 1e37f ? squares[q] * shrink - lost : 0;
                if (code + q != own && !(low > best.distance)) consider(book, s.exact, code + q, best);
                float bound = bound_of(low);
                if (bound < group.least) group.second = group.least, group.least = bound, group.nearest = code + q;
                else if (bound < group.second) group.second = bound;
            }
        }
        s.scored[kept++] = group;
    }
    if (best.index != own && !home_scored) {
        float left = bound_of(own_square);
        if (left < bounds[home]) bounds[home] = left;
    }
    for (int64_t i = 0; i < kept; ++i) {
        const Scored& group = s.scored[i];
        bounds[group.group] = group.nearest == best.index ? group.second : group.least;
    }
    *index = best.index;
    *distance = (float)best.distance;
    return true;
}

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
