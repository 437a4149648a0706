// A row is a lane: sums are added in the order of the columns, so every width of vector gives the same bits.
#include "adjust/adjust.h"

#include <math.h>

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

typedef int32_t i32h __attribute__((vector_size(VECTOR_BYTES / 2)));  // as many lanes as f64v

constexpr int GROUPS = 4;           // vectors of rows in flight: hides the latency of one accept test behind the others
constexpr int LANES = GROUPS * F64;  // rows a tile
constexpr float LARGEST = 3.402823466e38f;
constexpr double UP = 2 * (1 + 0x1p-40), DOWN = 2 * (1 - 0x1p-40);  // a step must gain more than rounding could feign

struct Tile {
    float *a, *u;  // (columns, LANES): magnitudes, cells
    int64_t n;     // columns
};

struct Sums {
    f64v product[GROUPS], square[GROUPS];
};

CODEWORD_INLINE f64v at(const float* from, int64_t i, int g) { return widen(load<f32h>(from + i * LANES + g * F64)); }

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

// Four rows of four columns become four columns of four rows, or the other way round.
CODEWORD_INLINE void transpose(f4& a, f4& b, f4& c, f4& d) {
    f4 p = __builtin_shufflevector(a, b, 0, 4, 1, 5), q = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    f4 r = __builtin_shufflevector(a, b, 2, 6, 3, 7), s = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    a = __builtin_shufflevector(p, q, 0, 1, 4, 5);
    b = __builtin_shufflevector(p, q, 2, 3, 6, 7);
    c = __builtin_shufflevector(r, s, 0, 1, 4, 5);
    d = __builtin_shufflevector(r, s, 2, 3, 6, 7);
}

// |v|; NaN counts as zero, infinity as the largest float32.
CODEWORD_INLINE f4 magnitude(f4 v) {
    const f4 top = {LARGEST, LARGEST, LARGEST, LARGEST};
    v = (f4)((i4)v & 0x7fffffff);
    v = v > top ? top : v;
    return v == v ? v : f4{};
}

// Four columns from `i` of four rows; the last ones may be fewer.
CODEWORD_INLINE f4 piece(const float* row, int64_t i, int64_t n) {
    if (n - i >= 4) return load<f4>(row + i);
    f4 v{};
    for (int64_t k = 0; k < n - i; ++k) v[k] = row[i + k];
    return v;
}

// Magnitudes of `count` rows from `start`, columns from `from`; lanes without a row repeat the last one.
CODEWORD_INLINE void gather(const AdjustTask& t, int64_t start, int64_t count, int64_t from, const Tile& tile) {
    for (int64_t r = 0; r < LANES; r += 4) {
        const float* rows[4];
        for (int k = 0; k < 4; ++k) rows[k] = t.rows + (start + (r + k < count ? r + k : count - 1)) * t.width + from;
        for (int64_t i = 0; i < tile.n; i += 4) {
            f4 a = magnitude(piece(rows[0], i, tile.n)), b = magnitude(piece(rows[1], i, tile.n));
            f4 c = magnitude(piece(rows[2], i, tile.n)), d = magnitude(piece(rows[3], i, tile.n));
            transpose(a, b, c, d);
            float* to = tile.a + i * LANES + r;
            store(to, a);  // the tile has room for columns up to a multiple of four
            store(to + LANES, b);
            store(to + 2 * LANES, c);
            store(to + 3 * LANES, d);
        }
    }
}

// Steps a start tries, as shares of reach (the step that just reaches the largest entry) and of the Gaussian's best step.
struct Trial { double reach, gaussian; };
constexpr Trial FEW_BITS[4] = {{1, 0}, {0, 1}, {0, 1.1}, {0, 0.9}}, MANY_BITS[4] = {{1, 0}, {0.98, 0}, {1.02, 0}, {0, 1}};
constexpr double LONGEST = 1.05;  // no step is longer than this share of reach

CODEWORD_INLINE f64v inverse_of(f64v step) { return step > f64v{} ? 1.0 / step : f64v{}; }

CODEWORD_INLINE f64v cell_of(f64v a, f64v inverse, f64v last) {
    f64v v = a * inverse;
    v = v < last ? v : last;
    return __builtin_convertvector(__builtin_convertvector(v, i32h), f64v);
}

// |x|^2, and the tried step whose cells have the largest cosine.
CODEWORD_INLINE void own_steps(const Tile& tile, int bits, double* norms, double* steps) {
    const f64v last = splat((double)((1 << (bits - 1)) - 1));
    for (int g = 0; g < GROUPS; ++g) {
        f64v square{}, largest{};
        for (int64_t i = 0; i < tile.n; ++i) {
            f64v a = at(tile.a, i, g);
            square += a * a;
            largest = a > largest ? a : largest;
        }
        store(norms + g * F64, square);
        f64v reach = largest / (double)(1 << (bits - 1)), gaussian{};
        for (int lane = 0; lane < F64; ++lane) gaussian[lane] = adjust_steps[bits - 1] * sqrt(square[lane] / (double)tile.n);
        f64v tried[4], product[4] = {}, norm[4] = {}, inverse[4];
        CODEWORD_UNROLL
        for (int t = 0; t < 4; ++t) {
            const Trial trial = bits <= 4 ? FEW_BITS[t] : MANY_BITS[t];
            f64v step = reach * trial.reach + gaussian * trial.gaussian, most = reach * LONGEST;
            tried[t] = step < most ? step : most;
            inverse[t] = inverse_of(tried[t]);
        }
        if (bits > 1)
            for (int64_t i = 0; i < tile.n; ++i) {
                f64v a = at(tile.a, i, g);
                CODEWORD_UNROLL
                for (int t = 0; t < 4; ++t) {
                    f64v odd = 2.0 * cell_of(a, inverse[t], last) + 1.0;
                    product[t] += odd * a;
                    norm[t] += odd * odd;
                }
            }
        f64v best = tried[0], p = product[0], d = norm[0];
        CODEWORD_UNROLL
        for (int t = 1; t < 4; ++t) {
            i64v better = product[t] * product[t] * d > p * p * norm[t];
            best = better ? tried[t] : best;
            p = better ? product[t] : p;
            d = better ? norm[t] : d;
        }
        store(steps + g * F64, best);
    }
}

CODEWORD_INLINE void assign(const Tile& tile, double top, const double* steps) {
    for (int g = 0; g < GROUPS; ++g) {
        const f64v inverse = inverse_of(load<f64v>(steps + g * F64)), last = splat(top);
        for (int64_t i = 0; i < tile.n; ++i) store(tile.u + i * LANES + g * F64, narrow(cell_of(at(tile.a, i, g), inverse, last)));
    }
}

CODEWORD_INLINE Sums sums_of(const Tile& tile) {
    Sums s{};
    for (int64_t i = 0; i < tile.n; ++i) {
        CODEWORD_UNROLL
        for (int g = 0; g < GROUPS; ++g) {
            f64v odd = 2.0 * at(tile.u, i, g) + 1.0;
            s.product[g] += odd * at(tile.a, i, g);
            s.square[g] += odd * odd;
        }
    }
    return s;
}

// One trial a coordinate: up where it raises <x, a>^2 / |x|^2, else down where that does. False when nothing moved.
CODEWORD_INLINE bool sweep(const Tile& tile, double top, Sums& s) {
    i64v moved{};
    const f64v last = splat(top), zero{};
    for (int64_t i = 0; i < tile.n; ++i) {
        CODEWORD_UNROLL
        for (int g = 0; g < GROUPS; ++g) {
            f64v a = at(tile.a, i, g), u = at(tile.u, i, g), n = s.product[g], d = s.square[g];
            f64v p = a * d, h = n * n, above = u + 1.0;
            i64v up = (p * (n + a) > h * UP * above) & (u < last);
            i64v down = (p * (n - a) < h * DOWN * u) & ~up;
            f64v change = up ? splat(1.0) : down ? splat(-1.0) : zero;
            s.product[g] = n + 2.0 * a * change;
            s.square[g] = d + (up ? 8.0 * above : down ? -8.0 * u : zero);
            store(tile.u + i * LANES + g * F64, narrow(u + change));
            moved |= up | down;
        }
    }
    int64_t any = 0;
    for (int lane = 0; lane < F64; ++lane) any |= moved[lane];
    return any != 0;
}

// Cells with the signs of their rows, as codes.
template <class Code>
CODEWORD_INLINE void scatter(const AdjustTask& t, int64_t start, int64_t count, int64_t from, int half, const Tile& tile) {
    typedef Code c4 __attribute__((vector_size(4 * sizeof(Code))));
    for (int64_t r = 0; r < count; r += 4) {
        for (int64_t i = 0; i < tile.n; i += 4) {
            const float* cells = tile.u + i * LANES + r;
            f4 u[4] = {load<f4>(cells), load<f4>(cells + LANES), load<f4>(cells + 2 * LANES), load<f4>(cells + 3 * LANES)};
            transpose(u[0], u[1], u[2], u[3]);
            CODEWORD_UNROLL
            for (int k = 0; k < 4; ++k) {
                if (r + k >= count) break;
                const int64_t place = (start + r + k) * t.width + from;
                i4 positive = piece(t.rows + place, i, tile.n) > f4{}, cell = __builtin_convertvector(u[k], i4);
                c4 codes = __builtin_convertvector(positive ? half + cell : half - 1 - cell, c4);
                Code* out = static_cast<Code*>(t.codes) + place + i;
                if (tile.n - i >= 4) store(out, codes);
                else
                    for (int64_t j = 0; j < tile.n - i; ++j) out[j] = codes[j];
            }
        }
    }
}

}  // namespace

int64_t adjust_scratch(int64_t longest) { return 2 * (longest + 4) * LANES; }

void adjust(const AdjustTask& task, int64_t start, int64_t stop, float* scratch) {
    alignas(64) double norms[LANES], steps[LANES];
    for (int64_t row = start; row < stop; row += LANES) {
        const int64_t count = stop - row < LANES ? stop - row : LANES;
        for (int64_t segment = 0; segment < task.segments; ++segment) {
            const int64_t from = task.starts[segment];
            const int64_t n = task.starts[segment + 1] - from;
            const Tile tile{scratch, scratch + LANES * (n + 4), n};
            const int bits = (int)task.bits[segment], half = 1 << (bits - 1);
            gather(task, row, count, from, tile);
            own_steps(tile, bits, norms, steps);
            if (task.steps)
                for (int64_t r = 0; r < LANES; ++r) steps[r] = r < count ? task.steps[(row + r) * task.segments + segment] : 0;
            assign(tile, half - 1, steps);
            if (half > 1 && task.rounds) {
                Sums s = sums_of(tile);
                for (int64_t round = 0; round < task.rounds; ++round)
                    if (!sweep(tile, half - 1, s)) break;
            }
            const Sums s = sums_of(tile);
            for (int64_t r = 0; r < count; ++r) {
                double* out = task.sums + ((row + r) * task.segments + segment) * 3;
                out[0] = s.product[r / F64][r % F64];
                out[1] = s.square[r / F64][r % F64];
                out[2] = norms[r];
            }
            if (task.wide) scatter<uint16_t>(task, row, count, from, half, tile);
            else scatter<uint8_t>(task, row, count, from, half, tile);
        }
    }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
