// The screen in 8-bit integers (AVX-512 VNNI): four times the products of float32 an instruction, and a bound from the true residuals.
//
// With a = x - m and b = c - m as in the float32 screen, a = s A + r and b = t B + q, where A and B are rows of integers -127..127:
//     |a.b - s t A.B| <= |r| |b| + |s A| |q|
// and the lengths of r and q are known. Vector lanes hold rows; the largest score of a group of codewords is kept for every row. The best
// group is scored in float32, which gives a sharp lower bound on the best score; then every group that may reach it; then, by the
// definition, every codeword that still may. README.md has the whole bound.
#pragma once
#include "nearest/exact.h"
#include "nearest/tracked.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int BLOCK = 8;              // codewords a register tile
constexpr int SETS = 3;               // vectors of rows a register tile
constexpr int64_t LANE_ROWS = 16;
constexpr int64_t TILE = SETS * LANE_ROWS;
constexpr int64_t BYTES_ROWS = 128, BYTES_CODES = 64, BYTES_WIDTH = 13;  // from here on it is faster, as measured
constexpr int64_t BYTES_SKIP = 15;    // tiles left to float32 after one that had too many candidates
constexpr float TINY = 1e-25f;        // entries below it are all residual: no scale, and no product of one, is subnormal

#if defined(__AVX512VNNI__)

CODEWORD_INLINE int64_t padded(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }

CODEWORD_INLINE int64_t fours(int64_t d) { return (d + 3) / 4; }

CODEWORD_INLINE __mmask16 inside(int64_t j, int64_t d) { return d - j >= 16 ? 0xffff : (__mmask16)((1u << (d - j)) - 1); }

struct Rounded {
    float scale, norm, residual;  // norm and residual: upper bounds of |a| and |r|
    double square;                // |a|^2 up to float64 rounding
    int32_t sum;                  // of the integers
};

// from - center as integers to bytes, padded with zeros to a multiple of 16.
CODEWORD_INLINE Rounded round_row(const float* from, const float* center, int64_t d, int8_t* bytes) {
    __m512 largest = _mm512_setzero_ps();
    __m512d squares = _mm512_setzero_pd(), more = _mm512_setzero_pd();
    for (int64_t j = 0; j < d; j += 16) {
        __mmask16 m = inside(j, d);
        __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, from + j), _mm512_maskz_loadu_ps(m, center + j));
        largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
        __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
        squares = _mm512_fmadd_pd(low, low, squares);
        more = _mm512_fmadd_pd(high, high, more);
    }
    Rounded out;
    float top = _mm512_reduce_max_ps(largest);
    bool usable = top >= TINY && top < 1e19f;
    float inverse = usable ? 127.0f / top : 0;
    out.scale = usable ? top / 127.0f : 0;
    out.square = _mm512_reduce_add_pd(_mm512_add_pd(squares, more));
    __m512 step = _mm512_set1_ps(out.scale), times = _mm512_set1_ps(inverse);
    __m512 rest = _mm512_setzero_ps();
    __m512i total = _mm512_setzero_si512();
    for (int64_t j = 0; j < d; j += 16) {
        __mmask16 m = inside(j, d);
        __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, from + j), _mm512_maskz_loadu_ps(m, center + j));
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, times));
        __m512 r = _mm512_fnmadd_ps(step, _mm512_cvtepi32_ps(q), v);
        rest = _mm512_fmadd_ps(r, r, rest);
        total = _mm512_add_epi32(total, q);
        _mm_storeu_si128((__m128i*)(bytes + j), _mm512_cvtsepi32_epi8(q));
    }
    out.sum = _mm512_reduce_add_epi32(total);
    out.norm = (float)(__builtin_sqrt(out.square) * 1.000001);
    // Squares below the normal range may be lost: at most d 2^-126 of the sum.
    double lost = _mm512_reduce_add_ps(rest) * (1 + (d + 8) * 0x1p-23) + d * 0x1p-125;
    out.residual = usable ? (float)(__builtin_sqrt(lost) * 1.000001) : out.norm;
    return out;
}

CODEWORD_INLINE void round_panel(const float* codebook, const float* center, int64_t k, int64_t d, int64_t panel, const BytesBook& book,
                                 int8_t* bytes) {
    int64_t words = fours(d);
    int32_t* to = book.panels + panel * words * BLOCK;
    for (int i = 0; i < BLOCK; ++i) {
        int64_t code = panel * BLOCK + i;
        Rounded c = {0, 0, 0, 0, 0};
        if (code < k) c = round_row(codebook + code * d, center, d, bytes);
        else memset(bytes, 0, words * 4);
        for (int64_t j = 0; j < words; ++j) memcpy(to + j * BLOCK + i, bytes + 4 * j, 4);
        book.starts[code] = -128 * c.sum;
        book.scales[code] = c.scale;
        book.halves[code] = code < k ? (float)(0.5 * c.square) : __builtin_inff();
        book.norms[code] = c.norm;
        book.residuals[code] = c.residual;
    }
}

// The error of any score of a group is at most first |row| * norm + second * residual + floor; see tile_by_bytes for first and second.
CODEWORD_INLINE float float_slope(int64_t d) {
    double unit = (d + 8) * 0x1p-24;
    return (float)(1.01 * unit / (1 - unit));
}

CODEWORD_INLINE void group_bounds(const NearestBook& book) {
    const BytesBook& b = book.bytes;
    for (int64_t g = 0; g < b.group_count; ++g) {
        float norm = 0, residual = 0;
        for (int64_t code = g * b.codes_per_group; code < (g + 1) * b.codes_per_group && code < b.code_count; ++code) {
            if (b.norms[code] > norm) norm = b.norms[code];
            if (b.residuals[code] > residual) residual = b.residuals[code];
        }
        b.group_norms[g] = norm;
        b.group_residuals[g] = residual;
        b.group_floors[g] = 1.001f * float_slope(book.d) * (norm + residual) * (norm + residual) / 2 + (float)((book.d + 8) * 0x1p-148);
    }
}

// sum += x.entry in groups of four bytes. Spelled out: GCC 12 copies the accumulators of the intrinsic around in every step.
CODEWORD_INLINE void dot_bytes(__m512i& sum, __m512i x, __m512i entry) { __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(entry)); }

// The largest s t A.B - |b|^2/2 of BLOCK codewords for TILE rows, into best where it is larger.
__attribute__((noinline)) static void screen_bytes(const uint8_t* rows, const int32_t* panel, const int32_t* starts, const float* scales,
                                                   const float* halves, const float* row_scales, int64_t words, __m512* best) {
    __m512i sums[BLOCK][SETS];
    CODEWORD_UNROLL
    for (int c = 0; c < BLOCK; ++c) {
        CODEWORD_UNROLL
        for (int s = 0; s < SETS; ++s) sums[c][s] = _mm512_set1_epi32(starts[c]);
    }
    for (int64_t j = 0; j < words; ++j) {
        __m512i x[SETS];
        CODEWORD_UNROLL
        for (int s = 0; s < SETS; ++s) x[s] = _mm512_loadu_si512(rows + (j * SETS + s) * 64);
        CODEWORD_UNROLL
        for (int c = 0; c < BLOCK; ++c) {
            __m512i entry = _mm512_set1_epi32(panel[j * BLOCK + c]);
            CODEWORD_UNROLL
            for (int s = 0; s < SETS; ++s) dot_bytes(sums[c][s], x[s], entry);
        }
    }
    CODEWORD_UNROLL
    for (int s = 0; s < SETS; ++s) {
        __m512 scale = _mm512_loadu_ps(row_scales + s * LANE_ROWS), top = best[s];
        CODEWORD_UNROLL
        for (int c = 0; c < BLOCK; ++c) {
            __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[c][s]), scale);
            top = _mm512_max_ps(top, _mm512_fmsub_ps(t, _mm512_set1_ps(scales[c]), _mm512_set1_ps(halves[c])));
        }
        best[s] = top;
    }
}

// Sums of the lanes of four vectors.
CODEWORD_INLINE __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// (x - m).(c - m) of four codewords in float32.
CODEWORD_INLINE __m128 products(const float* x, const float* center, const float* const c[4], int64_t d) {
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t j = 0; j < d; j += 16) {
        __mmask16 m = inside(j, d);
        __m512 middle = _mm512_maskz_loadu_ps(m, center + j), a = _mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + j), middle);
        CODEWORD_UNROLL
        for (int i = 0; i < 4; ++i) sums[i] = _mm512_fmadd_ps(a, _mm512_sub_ps(_mm512_maskz_loadu_ps(m, c[i] + j), middle), sums[i]);
    }
    return sums_of(sums[0], sums[1], sums[2], sums[3]);
}

struct BytesScratch {
    double* exact;      // the row at hand, padded to a multiple of 8
    uint8_t* rows;      // (words, SETS, 16, 4) their integers + 128
    int8_t* bytes;      // one row of integers
    float* maxima;      // (groups, TILE)
    float* row;         // (5, TILE) what the bounds need of every row
    int32_t* hits;      // (groups, 2) groups to be scored and for which rows
    int64_t* skip;      // tiles to leave to the float32 screen

    int64_t layout(const NearestBook& book, char* at) {
        int64_t begin = (int64_t)at, wide = (book.d + 15) & ~int64_t{15};
        skip = (int64_t*)at;
        at += 64;
        exact = (double*)at;
        at += wide * 8;
        rows = (uint8_t*)at;
        at += fours(book.d) * SETS * 64;
        bytes = (int8_t*)at;
        at += padded(wide);
        maxima = (float*)at;
        at += book.bytes.group_count * TILE * 4;
        row = (float*)at;
        at += 5 * TILE * 4;
        hits = (int32_t*)at;
        at += padded(book.bytes.group_count * 8);
        return (int64_t)at - begin;
    }
};

// A row's candidates: scored in float32, not yet by the definition.
struct Candidates {
    static constexpr int ROOM = 32;
    float upper[ROOM];
    int64_t codes[ROOM];
    int count = 0;
    float lower;   // certain of the best score
    Best best = {__builtin_inf(), INT64_MAX};
};

CODEWORD_INLINE float limit_of(const NearestBook& book, float norm, float lower) {
    double slack = (book.d + 64) * 0x1p-54 * (1.0001 * norm * norm + 2.0 * __builtin_fabsf(lower));
    return (float)(lower - slack - 0x1p-22 * __builtin_fabsf(lower) - 0x1p-126);
}

CODEWORD_INLINE void settle(const NearestBook& book, const float* row, double* exact, float norm, Candidates& found) {
    int64_t j = 0;
    for (; j + F64 <= book.d; j += F64) store(exact + j, widen(load<f32h>(row + j)));
    for (; j < book.d; ++j) exact[j] = row[j];
    for (; j % LANES; ++j) exact[j] = 0;
    float limit = limit_of(book, norm, found.lower);
    for (int i = 0; i < found.count; ++i)
        if (!(found.upper[i] < limit)) consider(book, exact, found.codes[i], found.best);
    found.count = 0;
}

// Scores a group in float32 and keeps what may be the nearest codeword.
__attribute__((noinline)) static void rescore(const NearestBook& book, const float* row, double* exact, float norm, int64_t group,
                                              float slope, Candidates& found) {
    const BytesBook& b = book.bytes;
    int64_t from = group * b.codes_per_group, to = from + b.codes_per_group < book.k ? from + b.codes_per_group : book.k;
    float error = 1.001f * slope * norm * b.group_norms[group] + b.group_floors[group];
    for (int64_t code = from; code < to; code += BLOCK) {
        const float* c[BLOCK];
        CODEWORD_UNROLL
        for (int i = 0; i < BLOCK; ++i) c[i] = book.codebook + (code + i < to ? code + i : to - 1) * book.d;
        __m256 scores = _mm256_set_m128(products(row, book.center, c + 4, book.d), products(row, book.center, c, book.d));
        scores = _mm256_sub_ps(scores, _mm256_loadu_ps(b.halves + code));  // -infinity behind the last codeword
        __m128 top = _mm_max_ps(_mm256_castps256_ps128(scores), _mm256_extractf128_ps(scores, 1));
        top = _mm_max_ps(top, _mm_movehl_ps(top, top));
        top = _mm_max_ss(top, _mm_movehdup_ps(top));
        if (_mm_cvtss_f32(top) - error > found.lower) found.lower = _mm_cvtss_f32(top) - error;
        __m256 high = _mm256_add_ps(scores, _mm256_set1_ps(error));
        __m256 limit = _mm256_set1_ps(limit_of(book, norm, found.lower));
        uint32_t near = _mm256_cmp_ps_mask(high, limit, _CMP_NLT_UQ);
        for (; near; near &= near - 1) {
            int i = __builtin_ctz(near);
            if (found.count == Candidates::ROOM) settle(book, row, exact, norm, found);
            found.upper[found.count] = high[i];
            found.codes[found.count++] = code + i;
        }
    }
}

// For 16 rows a lower bound of the distance to every group: |x - c|^2 = |a|^2 - 2 s.
CODEWORD_INLINE void keep_bounds(const BytesBook& b, const float* maxima, __m512 p, __m512 q, __m512 squares, float* bounds, int64_t rows) {
    __m512i at = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                    _mm512_set1_epi32((int)b.group_count));
    __mmask16 there = (__mmask16)((1u << rows) - 1);
    for (int64_t g = 0; g < b.group_count; ++g) {
        __m512 e = _mm512_fmadd_ps(p, _mm512_set1_ps(b.group_norms[g]),
                                   _mm512_fmadd_ps(q, _mm512_set1_ps(b.group_residuals[g]), _mm512_set1_ps(b.group_floors[g])));
        __m512 high = _mm512_add_ps(_mm512_loadu_ps(maxima + g * TILE), e), twice = _mm512_add_ps(high, high);
        // What float32 loses here is less than this part of either side.
        __m512 lost = _mm512_mul_ps(_mm512_set1_ps(0x1p-20f), _mm512_add_ps(squares, _mm512_abs_ps(twice)));
        __m512 square = _mm512_sub_ps(_mm512_sub_ps(squares, twice), lost);
        __m512 root = _mm512_mul_ps(_mm512_sqrt_ps(_mm512_max_ps(square, _mm512_setzero_ps())), _mm512_set1_ps(DOWN));
        __mmask16 useful = _mm512_cmp_ps_mask(square, _mm512_set1_ps(1e-36f), _CMP_GT_OQ);
        _mm512_mask_i32scatter_ps(bounds + g, there, at, _mm512_maskz_mov_ps(useful, root), 4);
    }
}

// Rows at..at+count-1, count <= TILE; ahead: rows to be fetched for the next call. False where so many groups would have to be scored that the float32 screen is faster.
CODEWORD_INLINE bool tile_by_bytes(const NearestBook& book, const BytesScratch& s, const float* x, int64_t* indices, float* distances,
                                   float* bounds, int64_t at, int64_t count, int64_t ahead) {
    const BytesBook& b = book.bytes;
    int64_t d = book.d, words = fours(d);
    float slope = float_slope(d);
    float *scales = s.row, *norms = s.row + TILE, *first = s.row + 2 * TILE, *second = s.row + 3 * TILE, *squares = s.row + 4 * TILE;
    bool trusted = true;
    for (int64_t r = 0; r < TILE; ++r) {
        Rounded a = {0, 0, 0, 0, 0};
        if (r < count) {
            a = round_row(x + (at + r) * d, book.center, d, s.bytes);
            trusted &= a.square < 1e37;
        } else {
            memset(s.bytes, 0, words * 4);
        }
        scales[r] = a.scale;
        norms[r] = a.norm;
        squares[r] = (float)(a.square * 0.999999);
        float length = a.norm + a.residual;
        first[r] = 1.001f * (a.residual + slope * length);
        second[r] = 1.001f * (length + slope * length);
        for (int64_t j = 0; j < words; ++j) {
            uint32_t word;
            memcpy(&word, s.bytes + 4 * j, 4);
            word ^= 0x80808080u;  // + 128 in every byte
            memcpy(s.rows + (j * TILE + r) * 4, &word, 4);
        }
    }
    if (!trusted) return false;
    const char *next = (const char*)(x + (at + count) * d), *last = next + (count == TILE ? ahead : 0) * d * 4;
    int64_t bytes = (last - next) / b.group_count + 64;
    for (int64_t g = 0; g < b.group_count; ++g) {
        for (const char* stop = next + bytes; next < stop && next < last; next += 64) _mm_prefetch(next, _MM_HINT_T1);
        __m512 best[SETS];
        for (int i = 0; i < SETS; ++i) best[i] = _mm512_set1_ps(-__builtin_inff());
        int64_t from = g * b.codes_per_group, to = from + b.codes_per_group < b.code_count ? from + b.codes_per_group : b.code_count;
        for (int64_t code = from; code < to; code += BLOCK)
            screen_bytes(s.rows, b.panels + code * words, b.starts + code, b.scales + code, b.halves + code, scales, words, best);
        for (int i = 0; i < SETS; ++i) _mm512_storeu_ps(s.maxima + g * TILE + i * LANE_ROWS, best[i]);
    }
    int64_t budget = (int64_t)(count * (double)book.k * d / 48 / (b.codes_per_group * (d / 8 + 8)));
    for (int64_t base = 0; base < count; base += LANE_ROWS) {
        const float* maxima = s.maxima + base;
        __m512 p = _mm512_loadu_ps(first + base), q = _mm512_loadu_ps(second + base);
        __m512 sure = _mm512_set1_ps(-__builtin_inff());
        __m512i top = _mm512_setzero_si512();
        for (int64_t g = 0; g < b.group_count; ++g) {
            __m512 e = _mm512_fmadd_ps(p, _mm512_set1_ps(b.group_norms[g]),
                                       _mm512_fmadd_ps(q, _mm512_set1_ps(b.group_residuals[g]), _mm512_set1_ps(b.group_floors[g])));
            __m512 low = _mm512_sub_ps(_mm512_loadu_ps(maxima + g * TILE), e);
            top = _mm512_mask_mov_epi32(top, _mm512_cmp_ps_mask(low, sure, _CMP_GT_OQ), _mm512_set1_epi32((int)g));
            sure = _mm512_max_ps(sure, low);
        }
        float lower[16], limits[16];
        int32_t tops[16];
        Candidates found[16];
        _mm512_storeu_ps(lower, sure);
        _mm512_storeu_si512(tops, top);
        int64_t rows = count - base < LANE_ROWS ? count - base : LANE_ROWS;
        for (int64_t r = 0; r < LANE_ROWS; ++r) {
            found[r].lower = lower[r];
            limits[r] = __builtin_inff();
            if (r >= rows) continue;
            rescore(book, x + (at + base + r) * d, s.exact, norms[base + r], tops[r], slope, found[r]);
            limits[r] = limit_of(book, norms[base + r], found[r].lower);
        }
        __m512 limit = _mm512_loadu_ps(limits);
        int64_t hit_count = 0;
        for (int64_t g = 0; g < b.group_count; ++g) {
            __m512 e = _mm512_fmadd_ps(p, _mm512_set1_ps(b.group_norms[g]),
                                       _mm512_fmadd_ps(q, _mm512_set1_ps(b.group_residuals[g]), _mm512_set1_ps(b.group_floors[g])));
            __m512 high = _mm512_add_ps(_mm512_loadu_ps(maxima + g * TILE), e);
            __mmask16 hits = _mm512_cmpneq_epi32_mask(top, _mm512_set1_epi32((int)g));
            hits = _mm512_mask_cmp_ps_mask(hits, high, limit, _CMP_NLT_UQ);
            s.hits[2 * hit_count] = (int32_t)g;
            s.hits[2 * hit_count + 1] = hits;
            hit_count += hits != 0;
            budget -= __builtin_popcount(hits);
        }
        if (budget < 0) return false;
        if (bounds) keep_bounds(b, maxima, p, q, _mm512_loadu_ps(squares + base), bounds + (at + base) * b.group_count, rows);
        for (int64_t r = 0; r < rows; ++r) {
            const float* row = x + (at + base + r) * d;
            for (int64_t i = 0; i < hit_count; ++i)
                if (s.hits[2 * i + 1] >> r & 1) rescore(book, row, s.exact, norms[base + r], s.hits[2 * i], slope, found[r]);
            settle(book, row, s.exact, norms[base + r], found[r]);
            indices[at + base + r] = found[r].best.index;
            distances[at + base + r] = (float)found[r].best.distance;
            // Without its own codeword the group of a row may have a larger bound: let it be scored.
            if (bounds) bounds[(at + base + r) * b.group_count + found[r].best.index / b.codes_per_group] = 0;
        }
    }
    return true;
}

#endif

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
