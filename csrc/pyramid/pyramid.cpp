#include "pyramid/pyramid.h"

#include <math.h>

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

CODEWORD_INLINE bool any(i64v mask) {
    int64_t all = 0;
    for (int lane = 0; lane < F64; ++lane) all |= mask[lane];
    return all != 0;
}

// F64 groups side by side, one a lane; `rows` of them are real.
CODEWORD_INLINE void project_some(const float* x, int rows, int64_t dim, int64_t pulses, int64_t* points, double* gains, f64v* size, f64v* odd) {
    const f64v zero{}, one = splat(1.0), two = splat(2.0), k = splat(static_cast<double>(pulses));
    for (int64_t i = 0; i < dim; ++i)
        for (int lane = 0; lane < F64; ++lane) size[i][lane] = lane < rows ? fabs(static_cast<double>(x[lane * dim + i])) : 0.0;
    f64v total = size[0];
    for (int64_t i = 1; i < dim; ++i) total += size[i];
    const i64v usable = (total > zero) & (total <= splat(1.7976931348623157e308));
    const f64v ratio = k / (usable ? total : one);
    f64v dot{}, energy{}, missing = k;
    for (int64_t i = 0; i < dim; ++i) {
        size[i] = usable ? size[i] : zero;
        f64v scaled = usable ? size[i] * ratio : zero;
        f64v point = __builtin_convertvector(__builtin_convertvector(scaled, i64v), f64v);  // floor: not negative
        f64v term = size[i] * point;
        dot = i ? dot + term : term;
        energy += point * point;
        missing -= point;
        odd[i] = two * point + one;
    }
    for (i64v open = missing > zero; any(open); open = missing > zero) {
        f64v best = splat(-1.0);
        i64v where{};
        for (int64_t i = 0; i < dim; ++i) {
            f64v sum = dot + size[i], score = sum * sum / (energy + odd[i]);
            i64v better = score > best;
            best = better ? score : best;
            where = better ? (i64v{} + i) : where;
        }
        f64v more_dot = zero, more_energy = zero;
        for (int64_t i = 0; i < dim; ++i) {
            i64v here = open & (where == (i64v{} + i));
            more_dot = here ? size[i] : more_dot;
            more_energy = here ? odd[i] : more_energy;
            odd[i] += here ? two : zero;
        }
        dot += more_dot;
        energy += more_energy;
        missing -= open ? one : zero;
    }
    for (int64_t i = 0; i < dim; ++i) {
        i64v point = __builtin_convertvector((odd[i] - one) / two, i64v);
        for (int lane = 0; lane < rows; ++lane) points[lane * dim + i] = x[lane * dim + i] < 0 ? -point[lane] : point[lane];
    }
    for (int lane = 0; lane < rows; ++lane) gains[lane] = dot[lane] / sqrt(energy[lane]);
}

// Points whose coordinate is nonzero and smaller than `size` in magnitude, with `left` pulses to place.
CODEWORD_INLINE int64_t before(int64_t size, int64_t left, const int64_t* sums) {
    return 2 * (sums[left > 0 ? left - 1 : 0] - sums[left > size ? left - size : 0]);
}

}  // namespace

void pyramid_project(const float* x, int64_t n, int64_t dim, int64_t pulses, int64_t* points, double* gains, void* scratch) {
    f64v* size = static_cast<f64v*>(scratch);
    for (int64_t row = 0; row < n; row += F64) {
        int rows = static_cast<int>(n - row < F64 ? n - row : F64);
        project_some(x + row * dim, rows, dim, pulses, points + row * dim, gains + row, size, size + dim);
    }
}

void pyramid_number(const int64_t* points, int64_t n, const PyramidTables& t, int64_t* index) {
    for (int64_t row = 0; row < n; ++row, points += t.dim) {
        int64_t found = 0, left = t.pulses;
        for (int64_t i = 0; i < t.dim; ++i) {
            const int64_t y = points[i], size = y < 0 ? -y : y;
            if (!size) continue;
            const int64_t* counts = t.counts + (t.dim - 1 - i) * (t.pulses + 1);
            found += counts[left] + before(size, left, t.sums + (t.dim - 1 - i) * (t.pulses + 1));
            left -= size;
            if (y < 0) found += counts[left];
        }
        index[row] = found;
    }
}

void pyramid_point(const int64_t* index, int64_t n, const PyramidTables& t, int64_t* points) {
    for (int64_t row = 0; row < n; ++row, points += t.dim) {
        int64_t rest = index[row], left = t.pulses;
        for (int64_t i = 0; i < t.dim; ++i) {
            const int64_t* counts = t.counts + (t.dim - 1 - i) * (t.pulses + 1);
            const int64_t* sums = t.sums + (t.dim - 1 - i) * (t.pulses + 1);
            const int64_t after = rest - counts[left];
            if (after < 0) {  // this coordinate is 0
                points[i] = 0;
                continue;
            }
            int64_t low = 0, high = left;
            while (low < high) {  // the largest size with before(size) <= after
                int64_t middle = (low + high + 1) / 2;
                if (before(middle, left, sums) <= after) {
                    low = middle;
                } else {
                    high = middle - 1;
                }
            }
            int64_t sign = 1;
            if (low > 0) {
                rest = after - before(low, left, sums);
                if (rest >= counts[left - low]) {
                    rest -= counts[left - low];
                    sign = -1;
                }
            }
            points[i] = sign * low;
            left -= low;
        }
    }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
