// Screen in float32, decide in float64. README.md has the error bound that makes the two agree with the definition.
#include "nearest/nearest.h"

#include "nearest/bytes.h"
#include "nearest/narrow.h"
#include "nearest/tracked.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int PANEL = 2 * F32;
// Rows a register tile: accumulators (two vectors a row), two vectors of the panel and one entry must fit the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ROWS = 12;
#elif defined(__AVX2__)
constexpr int ROWS = 6;
#else
constexpr int ROWS = 4;
#endif
constexpr int64_t WORD = 64 / F32;  // groups whose lanes fit a 64-bit mask
constexpr float HUGE_SUM = 1e38f;  // below it no partial sum of the screen overflows
const float INFINITE = __builtin_inff();

constexpr int64_t OPEN = 48;  // tracked rows that are screened together

// Rows that are screened together: they share each pass over the codebook.
CODEWORD_INLINE int64_t tile_rows(const NearestBook& book) {
    int64_t bytes = book.panel_count * PANEL * (book.d + 1) * 4;
    int64_t rows = bytes <= 16384 ? 24 : 48;
    return (rows + ROWS - 1) / ROWS * ROWS;
}

CODEWORD_INLINE int64_t round_up(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }

struct Scratch {
    double* exact;   // the row at hand in float64, padded to a multiple of 8
    float* tile;     // rows minus center, (tile, d)
    float* maxima;   // (groups, tile, F32)
    float* bounds;   // (groups padded to 16,)
    float* norms;    // (tile,) |x'|; infinity where the screen may not be trusted, NaN for rows with NaN or infinity

    int64_t layout(const NearestBook& book, char* at) {
        int64_t rows = tile_rows(book), begin = (int64_t)at;
        exact = (double*)at;
        at += round_up(((book.d + 7) & ~int64_t{7}) * 8);
        tile = (float*)at;
        at += round_up(rows * book.d * 4);
        maxima = (float*)at;
        at += round_up(book.group_count * rows * VECTOR_BYTES);
        bounds = (float*)at;
        at += round_up((book.group_count + 15) * 4);
        norms = (float*)at;
        at += round_up(rows * 4);
        return (int64_t)at - begin;
    }
};

// Lane-wise maxima of x'.c' - |c'|^2/2 of ROWS rows over one panel. A function of its own: inlined, the rows' addresses would spill.
__attribute__((noinline)) static void screen(const float* tile, const float* panel, int64_t d, float* maxima, bool first) {
    f32v sums[ROWS][2];
    CODEWORD_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        sums[r][0] = load<f32v>(panel);
        sums[r][1] = load<f32v>(panel + F32);
    }
    panel += PANEL;
    for (int64_t j = 0; j < d; ++j) {
        f32v a = load<f32v>(panel), b = load<f32v>(panel + F32);
        CODEWORD_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            f32v x = splat(tile[r * d + j]);
            sums[r][0] = fma(x, a, sums[r][0]);
            sums[r][1] = fma(x, b, sums[r][1]);
        }
        panel += PANEL;
    }
    CODEWORD_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        f32v best = max(sums[r][0], sums[r][1]);
        if (!first) best = max(best, load<f32v>(maxima + r * F32));
        store(maxima + r * F32, best);
    }
}

// All lanes of the maxima that the bound allows to hold the nearest codeword, each standing for a codeword a vector of its group.
CODEWORD_INLINE void decide(const NearestBook& book, const Scratch& s, const float* maxima, int64_t stride, float norm, float* bounds,
                            Best& best) {
    // |error of a score| <= slope (|x'| C + C^2/2) + floor, C the largest |c'| of the group.
    double unit = (book.d + 8) * 0x1p-24;
    float slope = unit < 0.25 ? (float)(1.01 * unit / (1 - unit)) : INFINITE, floor = (float)((book.d + 8) * 0x1p-148);
    for (int64_t g = 0; g < book.group_count; g += F32) {
        f32v largest = load<f32v>(book.groups + g);
        f32v sum = largest * (largest * 0.5f + norm);
        store(s.bounds + g, sum < HUGE_SUM ? sum * slope + floor : splat(INFINITE));
    }
    if (bounds) {  // |x - c|^2 = |x'|^2 - 2 s
        double square = 0.999999 * norm * norm;
        for (int64_t g = 0; g < book.group_count; ++g)
            bounds[g] = bound_of(square - 2.000002 * ((double)highest(load<f32v>(maxima + g * stride)) + s.bounds[g]));
    }
    f32v sure = splat(-INFINITE);
    for (int64_t g = 0; g < book.group_count; ++g) sure = max(load<f32v>(maxima + g * stride) - s.bounds[g], sure);
    float lower = highest(sure);
    // The definition itself rounds: its least distance may belong to a codeword that is farther by this much.
    double slack = (book.d + 64) * 0x1p-54 * (1.0001 * norm * norm + 2.0 * __builtin_fabsf(lower));
    float limit = (float)(lower - slack - 0x1p-22 * __builtin_fabsf(lower) - 0x1p-126);
    if (!(limit > -INFINITE)) limit = -INFINITE;
    for (int64_t g = 0; g < book.group_count; g += WORD) {
        uint64_t hits = 0;
        for (int64_t i = 0; i < WORD && g + i < book.group_count; ++i) {
            // Written so that NaN, which only an overflowing group can hold, counts as a hit.
            hits |= (uint64_t)any_of(~(load<f32v>(maxima + (g + i) * stride) + s.bounds[g + i] < limit)) << (i * F32);
        }
        for (; hits; hits &= hits - 1) {
            int bit = __builtin_ctzll(hits);
            int64_t from = (g + bit / F32) * book.panels_per_group * PANEL + bit % F32;
            int64_t to = from + book.panels_per_group * PANEL;
            for (int64_t code = from; code < to && code < book.k; code += F32) consider(book, s.exact, code, best);
        }
    }
}

// Puts rows start..start+count-1 minus center into the tile, zeros where a register tile has no row, and their norms.
CODEWORD_INLINE void fill_tile(const NearestBook& book, const Scratch& s, const float* x, int64_t start, int64_t count) {
    int64_t d = book.d;
    for (int64_t r = 0; r < count; ++r) {
        const float* row = x + (start + r) * d;
        float* to = s.tile + r * d;
        f64v sums[2] = {};
        double sum = 0;
        int64_t j = 0;
        for (; j + F32 <= d; j += F32) {
            f32v v = load<f32v>(row + j) - load<f32v>(book.center + j);
            store(to + j, v);
            f64v a = widen(load<f32h>(to + j)), b = widen(load<f32h>(to + j + F64));
            sums[0] += a * a;
            sums[1] += b * b;
        }
        for (; j < d; ++j) {
            float v = row[j] - book.center[j];
            to[j] = v;
            sum += (double)v * v;
        }
        sums[0] += sums[1];
        for (int i = 0; i < F64; ++i) sum += sums[0][i];
        s.norms[r] = sum < 1e37 ? (float)__builtin_sqrt(sum) : INFINITE;
    }
    for (int64_t r = count; r % ROWS; ++r) memset(s.tile + r * d, 0, d * sizeof(float));
}

CODEWORD_INLINE bool all_finite(const float* x, int64_t d) {
    bool finite = true;
    for (int64_t j = 0; j < d; ++j) finite &= x[j] - x[j] == 0;
    return finite;
}

}  // namespace

int64_t nearest_panel() { return PANEL; }

// A multiple of 64 bytes: the scratch of the screen in bytes lies behind.
CODEWORD_INLINE int64_t float_scratch(const NearestBook& book) {
    Scratch s;
    return round_up(s.layout(book, nullptr));
}

int64_t nearest_scratch(const NearestBook& book) {
    int64_t bytes = float_scratch(book);
#if defined(__AVX512VNNI__)
    BytesScratch s;
    if (book.bytes.group_count) bytes += s.layout(book, nullptr);
#endif
    return bytes;
}

bool nearest_bytes(int64_t n, int64_t k, int64_t d) {
#if defined(__AVX512VNNI__)
    return n >= BYTES_ROWS && k >= BYTES_CODES && d >= BYTES_WIDTH && d <= 32768;
#else
    (void)n, (void)k, (void)d;
    return false;
#endif
}

void nearest_prepare_bytes(const NearestBook& book, int64_t start, int64_t stop, int8_t* scratch) {
#if defined(__AVX512VNNI__)
    for (int64_t p = start; p < stop; ++p) round_panel(book.codebook, book.center, book.k, book.d, p, book.bytes, scratch);
#else
    (void)book, (void)start, (void)stop, (void)scratch;
#endif
}

void nearest_prepare(const float* codebook, const float* center, float* panels, float* norms, int64_t k, int64_t d,
                     int64_t start, int64_t stop) {
    for (int64_t p = start; p < stop; ++p) {
        float* panel = panels + p * PANEL * (d + 1);
        double largest = 0;
        bool trusted = true;
        for (int lane = 0; lane < PANEL; ++lane) {
            int64_t code = p * PANEL + lane;
            double sum = 0;
            for (int64_t j = 0; j < d; ++j) {
                float v = code < k ? codebook[code * d + j] - center[j] : 0;
                panel[(j + 1) * PANEL + lane] = v;
                sum += (double)v * v;
            }
            panel[lane] = code < k ? (float)(-0.5 * sum) : -INFINITE;
            if (sum > largest) largest = sum;
            trusted &= sum < 1e37;  // not where there is NaN
        }
        norms[p] = trusted ? (float)(__builtin_sqrt(largest) * 1.000001) : INFINITE;
    }
}

CODEWORD_INLINE void rows_by_floats(const NearestBook& book, const Scratch& s, const float* x, int64_t* indices, float* distances,
                                    float* bounds, int64_t start, int64_t stop) {
    int64_t d = book.d, tile = tile_rows(book), stride = tile * F32;
    for (int64_t j = d; j < ((d + 7) & ~int64_t{7}); ++j) s.exact[j] = 0;
    for (int64_t at = start; at < stop; at += tile) {
        int64_t count = stop - at < tile ? stop - at : tile;
        if (book.screen) {
            fill_tile(book, s, x, at, count);
            for (int64_t p = 0; p < book.panel_count; ++p) {
                int64_t g = p / book.panels_per_group;
                bool first = p == g * book.panels_per_group;
                for (int64_t base = 0; base < count; base += ROWS)
                    screen(s.tile + base * d, book.panels + p * PANEL * (d + 1), d, s.maxima + g * stride + base * F32, first);
            }
        }
        for (int64_t r = 0; r < count; ++r) {
            const float* row = x + (at + r) * d;
            int64_t j = 0;
            for (; j + F64 <= d; j += F64) store(s.exact + j, widen(load<f32h>(row + j)));
            for (; j < d; ++j) s.exact[j] = row[j];
            Best best = {__builtin_inf(), INT64_MAX};
            float* mine = bounds ? bounds + (at + r) * book.group_count : nullptr;
            if (mine) memset(mine, 0, book.group_count * sizeof(float));
            if (!(book.screen && s.norms[r] < INFINITE) && !all_finite(row, d)) best = {__builtin_nan(""), 0};
            else if (book.screen && s.norms[r] < INFINITE) decide(book, s, s.maxima + r * F32, stride, s.norms[r], mine, best);
            else
                for (int64_t code = 0; code < book.k; ++code) consider(book, s.exact, code, best);
            indices[at + r] = best.index;
            distances[at + r] = (float)best.distance;
            // Without its own codeword the group of a row may have a larger bound: let it be scored.
            if (mine) mine[best.index / (book.panels_per_group * PANEL)] = 0;
        }
    }
}

void nearest_group_bytes(const NearestBook& book) {
#if defined(__AVX512VNNI__)
    group_bounds(book);
#else
    (void)book;
#endif
}

void nearest_rows(const NearestBook& book, const float* x, int64_t* indices, float* distances, float* bounds, void* scratch,
                  int64_t start, int64_t stop) {
    Scratch floats;
    floats.layout(book, (char*)scratch);
#if defined(__AVX512VNNI__)
    if (book.bytes.group_count) {
        BytesScratch s;
        s.layout(book, (char*)scratch + float_scratch(book));
        for (int64_t at = start; at < stop; at += TILE) {
            int64_t count = stop - at < TILE ? stop - at : TILE, ahead = stop - at - count < TILE ? stop - at - count : TILE;
            if (*s.skip == 0 && tile_by_bytes(book, s, x, indices, distances, bounds, at, count, ahead)) continue;
            *s.skip = *s.skip ? *s.skip - 1 : BYTES_SKIP;
            rows_by_floats(book, floats, x, indices, distances, nullptr, at, at + count);
            // Other groups: nothing is known of these.
            if (bounds) memset(bounds + at * book.bytes.group_count, 0, count * book.bytes.group_count * sizeof(float));
        }
        return;
    }
#endif
    rows_by_floats(book, floats, x, indices, distances, bounds, start, stop);
}

int64_t nearest_group(const NearestBook& book) {
    return book.bytes.group_count ? book.bytes.codes_per_group : book.panels_per_group * PANEL;
}

int64_t nearest_track_scratch(const NearestBook& book) {
    int64_t groups = book.bytes.group_count ? book.bytes.group_count : book.group_count;
    return round_up(nearest_scratch(book)) + round_up((book.d + 7) * 8) + round_up(groups * sizeof(Scored)) + 3 * round_up(OPEN * 8) +
           round_up(OPEN * book.d * 4) + round_up(OPEN * groups * 4);
}

void nearest_track(const NearestBook& book, const Moves& moves, const float* x, int64_t* indices, float* distances, float* bounds,
                   void* scratch, int64_t start, int64_t stop) {
    int64_t d = book.d, groups = moves.group_count, open = 0;
    char* at = (char*)scratch + round_up(nearest_scratch(book));
    Tracked s;
    s.exact = (double*)at;
    at += round_up((d + 7) * 8);
    s.scored = (Scored*)at;
    at += round_up(groups * sizeof(Scored));
    int64_t *rows = (int64_t*)at, *codes = (int64_t*)(at + round_up(OPEN * 8));
    float* squares = (float*)(at + 2 * round_up(OPEN * 8));
    at += 3 * round_up(OPEN * 8);
    float *values = (float*)at, *fresh = (float*)(at + round_up(OPEN * d * 4));
    // Where most rows of the first ones stay open, the bounds are of no use yet: all at once is faster.
    for (int64_t row = start; row < stop; ++row) {
        if (row == start + OPEN / 2 && 4 * open > OPEN) {
            nearest_rows(book, x, indices, distances, bounds, scratch, start, stop);
            return;
        }
        if (!track_row(book, moves, s, x + row * d, indices + row, distances + row, bounds + row * groups)) {
            memcpy(values + open * d, x + row * d, d * sizeof(float));
            rows[open++] = row;
        }
        if (open < OPEN && row + 1 < stop) continue;
        nearest_rows(book, values, codes, squares, fresh, scratch, 0, open);
        for (int64_t i = 0; i < open; ++i) {
            indices[rows[i]] = codes[i];
            distances[rows[i]] = squares[i];
            memcpy(bounds + rows[i] * groups, fresh + i * groups, groups * sizeof(float));
        }
        open = 0;
    }
}

bool nearest_narrow(int64_t k, int64_t d) { return 1 <= d && d <= NARROW && k <= NARROW_WORK / (d + 4); }

void nearest_turn(const float* codebook, float* turned, int64_t width, int64_t k, int64_t d) {
    for (int64_t j = 0; j < d; ++j)
        for (int64_t code = 0; code < width; ++code) turned[j * width + code] = code < k ? codebook[code * d + j] : INFINITE;
}

void nearest_narrow_rows(const float* codebook, const float* turned, int64_t width, int64_t k, int64_t d, const float* x, int64_t* indices,
                         float* distances, int64_t start, int64_t stop) {
    switch (d) {
#define CODEWORD_CASE(D) \
    case D: return narrow_rows<D>(codebook, turned, width, k, x, indices, distances, start, stop);
        CODEWORD_CASE(1) CODEWORD_CASE(2) CODEWORD_CASE(3) CODEWORD_CASE(4) CODEWORD_CASE(5) CODEWORD_CASE(6)
        CODEWORD_CASE(7) CODEWORD_CASE(8) CODEWORD_CASE(9) CODEWORD_CASE(10) CODEWORD_CASE(11) CODEWORD_CASE(12)
#undef CODEWORD_CASE
    }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
