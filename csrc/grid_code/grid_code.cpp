#include "grid_code/grid_code.h"

#include <math.h>

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

typedef int32_t i32h __attribute__((vector_size(VECTOR_BYTES / 2)));  // as many lanes as f64v

// A step of the walk: entry i leaves its cell at t.
struct Step {
    double t;
    int32_t i;
};

struct Row {
    const int32_t* a;
    int64_t dim;
    int cells;
    Step *steps, *spare;
    double *inverse, *next;  // 1 / a; the breakpoint at which an entry leaves its cell, infinite for the last cell
    float* f;                // a as float32, for the bounds
    int32_t* u;              // cells at the start of the part that is walked

    Row(const int32_t* a, int64_t dim, int cells, void* scratch) : a(a), dim(dim), cells(cells) {
        int64_t room = dim + 16;
        steps = static_cast<Step*>(scratch);
        spare = steps + room;
        inverse = reinterpret_cast<double*>(spare + room);
        next = inverse + room;
        f = reinterpret_cast<float*>(next + room);
        u = reinterpret_cast<int32_t*>(f + room);
    }

    // Cells before any breakpoint >= t (finite), and the sums there. t a is at most one cell off. Sums are exact in float64 over BLOCK entries.
    void start_at(double t, int64_t& n, int64_t& d) {
        constexpr int64_t BLOCK = 4096;
        n = d = 0;
        for (int64_t base = 0; base < dim; base += BLOCK) {
            const int64_t end = dim - base < BLOCK ? dim : base + BLOCK;
            f64v product{}, square{};
            const f64v at = splat(t), last = splat(cells - 1.0), zero{}, one = splat(1.0), never = splat((double)INFINITY);
            int64_t i = base;
            for (; i + F64 <= end; i += F64) {
                f64v value = __builtin_convertvector(load<i32h>(a + i), f64v), inv = load<f64v>(inverse + i), guess = at * value;
                f64v cell = __builtin_convertvector(__builtin_convertvector(guess < last ? guess : last, i32h), f64v);
                cell -= (cell > zero) & ~(cell * inv < at) ? one : zero;
                cell += (cell < last) & ((cell + one) * inv < at) ? one : zero;
                store(u + i, __builtin_convertvector(cell, i32h));
                store(next + i, cell < last ? (cell + one) * inv : never);
                f64v odd = cell + cell + one;
                product += odd * value;
                square += odd * odd;
            }
            for (int lane = 0; lane < F64; ++lane) {
                n += static_cast<int64_t>(product[lane]);
                d += static_cast<int64_t>(square[lane]);
            }
            for (; i < end; ++i) {
                double guess = t * a[i];
                int32_t cell = guess < cells - 1 ? static_cast<int32_t>(guess) : cells - 1;
                if (cell > 0 && !(cell * inverse[i] < t)) --cell;
                if (cell < cells - 1 && (cell + 1) * inverse[i] < t) ++cell;
                u[i] = cell;
                next[i] = cell < cells - 1 ? (cell + 1) * inverse[i] : INFINITY;
                int64_t odd = 2 * cell + 1;
                n += odd * a[i];
                d += odd * odd;
            }
        }
    }

    // The code after the last step: all entries but zeros in the last cell.
    void end(int64_t& n, int64_t& d) {
        n = d = 0;
        for (int64_t i = 0; i < dim; ++i) {
            int64_t odd = a[i] ? 2 * cells - 1 : 1;
            n += odd * a[i];
            d += odd * odd;
        }
    }

    // Steps with t < to, ascending, equal ones in order of i. A part is so short that an entry takes at most one.
    int64_t steps_before(double to) {
        int64_t count = 0;
        for (int64_t i = 0; i < dim; ++i) {
            steps[count] = Step{next[i], static_cast<int32_t>(i)};
            count += next[i] < to;
        }
        sort(count);
        return count;
    }

    void take(int64_t count) {
        for (int64_t s = 0; s < count; ++s) {
            int32_t i = steps[s].i, cell = ++u[i];
            next[i] = cell < cells - 1 ? (cell + 1) * inverse[i] : INFINITY;
        }
    }

    // Stable merge sort: short runs by insertion, then pairs of runs.
    void sort(int64_t count) {
        constexpr int64_t RUN = 12;
        for (int64_t from = 0; from < count; from += RUN) {
            int64_t to = from + RUN < count ? from + RUN : count;
            for (int64_t i = from + 1; i < to; ++i) {
                Step s = steps[i];
                int64_t j = i;
                for (; j > from && steps[j - 1].t > s.t; --j) steps[j] = steps[j - 1];
                steps[j] = s;
            }
        }
        for (int64_t run = RUN; run < count; run *= 2) {
            for (int64_t from = 0; from < count; from += 2 * run) {
                int64_t middle = from + run < count ? from + run : count, to = from + 2 * run < count ? from + 2 * run : count;
                int64_t x = from, y = middle;
                for (int64_t at = from; at < to; ++at) spare[at] = x < middle && (y >= to || !(steps[y].t < steps[x].t)) ? steps[x++] : steps[y++];
            }
            Step* swapped = steps;
            steps = spare;
            spare = swapped;
        }
    }
};

double score(int64_t n, int64_t d) { return static_cast<double>(n) * static_cast<double>(n) / static_cast<double>(d); }

// Sum of squared distances of the spans [t1 a, t2 a] to the nearest cell centre: a lower bound of |a - x / t|^2 t2^2 for t in [t1, t2].
// A span is at most 1/2 long where it starts inside the grid; one that starts beyond its end is as far away as its start.
// Stops early once it exceeds the limit.
float part_bound(const float* f, int64_t dim, float t1, float t2, float top, float limit) {
    f32v sum{};
    int64_t i = 0;
    const f32v zero{}, last = splat(top);
    for (; i + F32 <= dim; i += F32) {
        if (i % 64 == 0 && i) {
            float so_far = 0;
            for (int lane = 0; lane < F32; ++lane) so_far += sum[lane];
            if (so_far > limit) return so_far;
        }
        f32v v = load<f32v>(f + i), low = v * t1, high = v * t2;
        f32v c1 = low < last ? low : last, c2 = high < last ? high : last;
        c1 = __builtin_convertvector(__builtin_convertvector(c1, i32v), f32v) + 0.5f;
        c2 = __builtin_convertvector(__builtin_convertvector(c2, i32v), f32v) + 0.5f;
        f32v above = max(low - c1, zero), below = max(c2 - high, zero);
        f32v crossing = above < below ? above : below;
        f32v d = c1 == c2 ? max(above, below) : crossing;
        sum += d * d;
    }
    float total = 0;
    for (int lane = 0; lane < F32; ++lane) total += sum[lane];
    for (; i < dim; ++i) {
        float low = f[i] * t1, high = f[i] * t2;
        float c1 = static_cast<float>(static_cast<int32_t>(low < top ? low : top)) + 0.5f;
        float c2 = static_cast<float>(static_cast<int32_t>(high < top ? high : top)) + 0.5f;
        float above = low - c1 > 0 ? low - c1 : 0, below = c2 - high > 0 ? c2 - high : 0;
        float d = c1 == c2 ? (above > below ? above : below) : (above < below ? above : below);
        total += d * d;
    }
    return total;
}

// sum max(0, a - edge)^2: what the entries beyond the grid's end miss at least, whatever the others do.
double beyond(const int32_t* a, int64_t dim, double edge) {
    double sum = 0;
    for (int64_t i = 0; i < dim; ++i) {
        double over = a[i] - edge;
        if (over > 0) sum += over * over;
    }
    return sum;
}

// Whether a code met in [from, to] can have a residual within the limit.
bool near(const Row& row, int64_t dim, double from, double to, float top, double limit) {
    const float bound = static_cast<float>(limit * to * to * 1.000001);  // larger in float32 too
    return part_bound(row.f, dim, static_cast<float>(from), static_cast<float>(to), top, bound) <= bound;
}

// The steps up to `to`, from where row, n and d stand; the first code of the best score so far into out.
void walk(Row& row, double to, int64_t& n, int64_t& d, double& found, uint8_t* out) {
    const int64_t count = row.steps_before(to);
    double here = score(n, d);
    int64_t steps = 0;
    bool better = here > found;
    if (better) found = here;
    for (int64_t s = 0; s < count; ++s) {
        const int32_t i = row.steps[s].i;
        n += 2 * static_cast<int64_t>(row.a[i]);
        d += 8 * (static_cast<int64_t>(row.u[i]) + 1);
        here = score(n, d);
        if (here > found) {
            found = here;
            steps = s + 1;
            better = true;
        }
    }
    if (better) {
        for (int64_t i = 0; i < row.dim; ++i) out[i] = static_cast<uint8_t>(row.u[i]);
        for (int64_t s = 0; s < steps; ++s) ++out[row.steps[s].i];
    }
    row.take(count);
}

constexpr int PIECES = 4;

}  // namespace

double grid_score(const int32_t* a, int64_t dim, int half, const uint16_t* codes) {
    int64_t n = 0, d = 0;
    for (int64_t i = 0; i < dim; ++i) {
        int64_t cell = codes[i] >= half ? codes[i] - half : half - 1 - codes[i], odd = 2 * cell + 1;
        n += odd * a[i];
        d += odd * odd;
    }
    return score(n, d);
}

void grid_code(const int32_t* a, int64_t dim, int cells, double good, uint8_t* out, void* scratch) {
    Row row(a, dim, cells, scratch);
    int32_t largest = 0, smallest = INT32_MAX;
    double square = 0;
    for (int64_t i = 0; i < dim; ++i) {
        row.f[i] = static_cast<float>(a[i]);
        row.inverse[i] = 1.0 / a[i];
        square += static_cast<double>(a[i]) * a[i];
        if (a[i] > largest) largest = a[i];
        if (a[i] && a[i] < smallest) smallest = a[i];
    }
    for (int64_t i = 0; i < dim; ++i) out[i] = 0;
    if (largest == 0) return;

    // A first good score, unless one is given: Lloyd steps between code and scale, from the step that suits a Gaussian.
    int64_t n, d;
    double best = good;
    if (!(best > 0)) {
        row.start_at(cells / (2.8 * sqrt(square / static_cast<double>(dim))), n, d);
        best = score(n, d);
        for (int i = 0; i < 4; ++i) {
            row.start_at(static_cast<double>(d) / (2.0 * static_cast<double>(n)), n, d);
            double next = score(n, d);
            if (next > best) best = next;
        }
    }
    // The best code x is the one nearest to a t at its own scale t = |x|^2 / <x, a>, so it is met in a part of the walk where
    // |a - x / t|^2 can be as small as its residual |a|^2 - score. The other parts are skipped; the slack covers rounding in the bounds.
    const double limit = (square - best) * 1.001 + square * 1e-9;
    const float top = static_cast<float>(cells - 1);
    double found = -1;
    bool open = false;  // u, n, d stand at the end of the part before this one
    double from = 0, to;
    for (; from * smallest <= cells; from = to) {
        // No entry that still moves crosses more than half a cell: first 1/2 of the largest, then, as those saturate, geometric parts.
        const bool saturating = from * largest >= cells;
        to = from + (saturating ? from / (2 * cells) : 0.5 / largest);
        if (saturating && beyond(a, dim, (cells - 0.5) / from) > limit) return;
        if (!near(row, dim, from, to, top, limit)) {
            open = false;
            continue;
        }
        // What is left is cut once more: shorter parts have larger bounds and fewer steps.
        double start = from;
        for (int piece = 1; piece <= PIECES; ++piece) {
            const double stop = piece == PIECES ? to : from + (to - from) * (static_cast<double>(piece) / PIECES);
            if (near(row, dim, start, stop, top, limit)) {
                if (!open) row.start_at(start, n, d);
                walk(row, stop, n, d, found, out);
                open = true;
            } else
                open = false;
            start = stop;
        }
    }
    row.end(n, d);  // the last code is nearest only to points beyond the walk
    if (score(n, d) > found)
        for (int64_t i = 0; i < dim; ++i) out[i] = static_cast<uint8_t>(a[i] ? cells - 1 : 0);
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
