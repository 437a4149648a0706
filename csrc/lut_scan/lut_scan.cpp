#include "lut_scan/lut_scan.h"

#include "best.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int64_t TILE = 64;  // blocks whose first look uses one limit
constexpr int64_t BLOCK = LUT_BLOCK;
// Bytes. Into the second cache: lines on their way to the first wait in its few fill buffers, which halves the speed from memory.
[[maybe_unused]] constexpr int64_t AHEAD = 1 << 14;

// What the first look compares: bytes' sums with an integer, or, where rows have terms, step * sum + term with a float.
struct Limit {
    int32_t sum;
    float value, step;
};

int64_t code_bytes(const LutBlocks& blocks) {  // of a block
    return blocks.width == 4 ? (blocks.books + 3) / 4 * 64 : BLOCK * blocks.books * blocks.width / 8;
}

// ---------------------------------------------------------------- rounded tables

struct Range {
    float low, high;
    bool finite;
};

CODEWORD_INLINE Range range_of(const float* t, int64_t size) {
    Range r{t[0], t[0], true};
    int64_t i = 0;
    float odd = 0;
    if (size >= F32) {
        f32v high = load<f32v>(t), low = -high, zero = high - high;
        for (i = F32; i + F32 <= size; i += F32) {
            f32v v = load<f32v>(t + i);
            high = max(v, high);
            low = max(-v, low);
            zero += v - v;
        }
        r.high = highest(high);
        r.low = -highest(low);
        CODEWORD_UNROLL
        for (int l = 0; l < F32; ++l) odd += zero[l];
    }
    for (; i < size; ++i) {
        r.low = t[i] < r.low ? t[i] : r.low;
        r.high = t[i] > r.high ? t[i] : r.high;
        odd += t[i] - t[i];
    }
    r.finite = odd == 0;
    return r;
}

// bytes = floor((t - lowest of its table) / step) with one step for all tables, so that lowest + step * sum of bytes never exceeds the
// sum. A quotient is at most 255 and their sum at most 65535. step = 0, bytes = 0 where that is impossible: then every row is looked at.
void round_tables(const LutBlocks& blocks, LutQuery& query) {
    const int64_t size = blocks.size, stride = blocks.width == 4 ? 16 : blocks.width == 8 ? 256 : size;
    double lowest = 0, spans = 0, widest = 0, magnitude = 0;
    bool finite = true;
    for (int64_t m = 0; m < blocks.books; ++m) {
        const Range r = range_of(query.tables + m * size, size);
        const double span = static_cast<double>(r.high) - r.low;
        lowest += r.low;
        spans += span;
        widest = span > widest ? span : widest;
        magnitude += -r.low > r.high ? -r.low : r.high;
        finite = finite && r.finite;
    }
    query.lowest = lowest;
    query.magnitude = magnitude;
    query.step = widest / 255 > spans / 65535 ? widest / 255 : spans / 65535;
    if (!(finite && query.step > 1e-37 && magnitude < 1e38)) query.step = 0;
    query.inverse = query.step > 0 ? 1 / query.step : 0;
    if (query.step == 0 || stride * blocks.books != blocks.books * size || blocks.books % 4)
        __builtin_memset(query.bytes, 0, lut_bytes(blocks.books, size, blocks.width));
    if (query.step == 0) return;
    const float inverse = static_cast<float>(query.inverse * (1 - 0x1p-20));  // rounding must not lift a quotient
    for (int64_t m = 0; m < blocks.books; ++m) {
        const float* t = query.tables + m * size;
        const float low = range_of(t, size).low;
        uint8_t* to = query.bytes + m * stride;
        for (int64_t i = 0; i < size; ++i) to[i] = static_cast<uint8_t>(static_cast<int32_t>((t[i] - low) * inverse));
        for (int64_t i = size; i < stride; ++i) to[i] = to[size - 1];  // codes beyond the table count as its last entry
    }
}

// How far rounding can move any of the float32 sums below, and more (README.md); z: the size of what is added.
CODEWORD_INLINE double margin(const LutBlocks& blocks, double z) { return z * 0x1p-22 * static_cast<double>(blocks.books + 16); }

// Every row that may be among the k best passes.
Limit limit_of(const LutBlocks& blocks, const LutQuery& query, float coarse) {
    Limit limit{INT32_MAX, INFINITY, static_cast<float>(query.step)};
    float worst = query.count < query.k ? INFINITY : query.distances[0];
    if (query.bounded == query.k && query.highs[0] < worst) worst = query.highs[0];
    const double z = query.magnitude + __builtin_fabs(static_cast<double>(worst)) + __builtin_fabs(static_cast<double>(coarse));
    if (!(query.step > 0) || !(z < 1e38)) return limit;
    const double room = static_cast<double>(worst) - coarse - query.lowest + margin(blocks, z);
    const double sum = room * query.inverse;
    limit.sum = sum < 0 ? -1 : sum < 1e9 ? static_cast<int32_t>(sum * (1 + 0x1p-40)) : INT32_MAX;
    limit.value = static_cast<float>(room);
    return limit;
}

// ---------------------------------------------------------------- first look: sums of a block's rows, and the rows that pass, as bits

// What a tile leaves behind, by query and block.
struct Looks {
    alignas(64) uint16_t sums[LUT_QUERIES * TILE][BLOCK];
    uint32_t masks[LUT_QUERIES * TILE];
};

template <class Code>
CODEWORD_INLINE void plain_sums(const Code* codes, int64_t books, int64_t stride, uint32_t last, const uint8_t* bytes, uint16_t* sums) {
    for (int64_t m = 0; m < books; ++m, codes += BLOCK, bytes += stride)
        for (int j = 0; j < BLOCK; ++j) sums[j] = static_cast<uint16_t>(sums[j] + bytes[codes[j] < last ? codes[j] : last]);
}

#if defined(__AVX2__)

// 16-bit sums of 16 rows, two books in the lanes of a register: even rows (with odd ones above them, modulo 2^16) and odd rows.
struct Sums16 {
    __m256i even, odd;

    void add(__m256i entries) {
        even = _mm256_add_epi16(even, entries);
        odd = _mm256_add_epi16(odd, _mm256_srli_epi16(entries, 8));
    }

    void write(uint16_t* sums) const {
        __m256i clean = _mm256_sub_epi16(even, _mm256_slli_epi16(odd, 8));
        __m128i a = _mm_add_epi16(_mm256_castsi256_si128(clean), _mm256_extracti128_si256(clean, 1));
        __m128i b = _mm_add_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));
        _mm_store_si128(reinterpret_cast<__m128i*>(sums), _mm_unpacklo_epi16(a, b));
        _mm_store_si128(reinterpret_cast<__m128i*>(sums + 8), _mm_unpackhi_epi16(a, b));
    }
};

// The 4 books of a group are sorted into lanes: 16 rows of books 0 and 2, of books 1 and 3; then a byte shuffle looks up 32 codes.
CODEWORD_INLINE void nibble_sums(const uint8_t* codes, int64_t books, const uint8_t* bytes, uint16_t* sums) {
    const __m256i sort = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i pair = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), low = _mm256_set1_epi8(15);
    Sums16 first{_mm256_setzero_si256(), _mm256_setzero_si256()}, second = first;
    for (int64_t g = 0; g < (books + 3) / 4; ++g, codes += 64, bytes += 64) {
        const __m256i* at = reinterpret_cast<const __m256i*>(codes);
        const __m256i* table = reinterpret_cast<const __m256i*>(bytes);
        __m256i a = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_loadu_si256(at), sort), pair);
        __m256i b = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_loadu_si256(at + 1), sort), pair);
        __m256i even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
        __m256i t01 = _mm256_loadu_si256(table), t23 = _mm256_loadu_si256(table + 1);
        __m256i t02 = _mm256_permute2x128_si256(t01, t23, 0x20), t13 = _mm256_permute2x128_si256(t01, t23, 0x31);
        first.add(_mm256_shuffle_epi8(t02, _mm256_and_si256(even, low)));
        first.add(_mm256_shuffle_epi8(t13, _mm256_and_si256(odd, low)));
        second.add(_mm256_shuffle_epi8(t02, _mm256_and_si256(_mm256_srli_epi16(even, 4), low)));
        second.add(_mm256_shuffle_epi8(t13, _mm256_and_si256(_mm256_srli_epi16(odd, 4), low)));
    }
    first.write(sums);
    second.write(sums + 16);
}

#else

CODEWORD_INLINE void nibble_sums(const uint8_t* codes, int64_t books, const uint8_t* bytes, uint16_t* sums) {
    for (int64_t g = 0; g < (books + 3) / 4; ++g, bytes += 64) {
        for (int j = 0; j < 16; ++j, codes += 4) {
            int first = 0, second = 0;
            CODEWORD_UNROLL
            for (int s = 0; s < 4; ++s) {
                first += bytes[16 * s + (codes[s] & 15)];
                second += bytes[16 * s + (codes[s] >> 4)];
            }
            sums[j] = static_cast<uint16_t>(sums[j] + first);
            sums[j + 16] = static_cast<uint16_t>(sums[j + 16] + second);
        }
    }
}

#endif

#if defined(__AVX512BW__)

CODEWORD_INLINE uint32_t passing(__m512i sums, const float* terms, const Limit& limit) {
    if (!terms) {
        const __m512i most = _mm512_set1_epi16(static_cast<int16_t>(limit.sum < 65535 ? limit.sum : 65535));
        return limit.sum < 0 ? 0 : _mm512_cmple_epu16_mask(sums, most);
    }
    const __m512 step = _mm512_set1_ps(limit.step), most = _mm512_set1_ps(limit.value);
    __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(sums)));
    __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(sums, 1)));
    a = _mm512_add_ps(_mm512_mul_ps(step, a), _mm512_loadu_ps(terms));
    b = _mm512_add_ps(_mm512_mul_ps(step, b), _mm512_loadu_ps(terms + 16));
    return static_cast<uint32_t>(_mm512_cmp_ps_mask(a, most, _CMP_LE_OQ)) | static_cast<uint32_t>(_mm512_cmp_ps_mask(b, most, _CMP_LE_OQ)) << 16;
}

#else

CODEWORD_INLINE uint32_t passing(const uint16_t* sums, const float* terms, const Limit& limit) {
    uint32_t mask = 0;
#if defined(__AVX2__)
    if (!terms) {
        const __m256i most = _mm256_set1_epi16(static_cast<int16_t>(limit.sum < 65535 ? limit.sum : 65535));
        const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums)), b = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + 16));
        const __m256i both = _mm256_packs_epi16(_mm256_cmpeq_epi16(_mm256_min_epu16(a, most), a), _mm256_cmpeq_epi16(_mm256_min_epu16(b, most), b));
        return limit.sum < 0 ? 0 : static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(both, 0xD8)));
    }
#endif
    for (int j = 0; j < BLOCK; ++j) {
        bool pass = terms ? limit.step * static_cast<float>(sums[j]) + terms[j] <= limit.value : sums[j] <= limit.sum;
        mask |= static_cast<uint32_t>(pass) << j;
    }
    return mask;
}

#endif

void plain_looks(const LutBlocks& blocks, const uint8_t* codes, int64_t count, const LutQuery& query, const Limit& limit, const float* terms,
                 Looks& looks, int at, int64_t b) {
    const uint32_t last = static_cast<uint32_t>(blocks.size - 1);
    for (const int64_t last_block = b + count; b < last_block; ++b, codes += code_bytes(blocks), terms = terms ? terms + BLOCK : nullptr) {
        uint16_t* sums = looks.sums[at * TILE + b];
        __builtin_memset(sums, 0, sizeof(uint16_t) * BLOCK);
        if (blocks.width == 4) nibble_sums(codes, blocks.books, query.bytes, sums);
        else if (blocks.width == 8) plain_sums(codes, blocks.books, 256, 255, query.bytes, sums);
        else plain_sums(reinterpret_cast<const uint16_t*>(codes), blocks.books, blocks.size, last, query.bytes, sums);
#if defined(__AVX512BW__)
        looks.masks[at * TILE + b] = passing(_mm512_load_si512(sums), terms, limit);
#else
        looks.masks[at * TILE + b] = passing(sums, terms, limit);
#endif
    }
}

#if defined(__AVX512BW__)

// Words 0, 2, 4, ... of two registers.
CODEWORD_INLINE __m512i low_words(__m512i a, __m512i b) {
    alignas(64) static constexpr uint16_t even[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                      32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    return _mm512_permutex2var_epi16(a, _mm512_load_si512(even), b);
}

// 64 bytes: the codes of 4 books for 16 rows in low nibbles, for 16 more in high ones. A register holds the 4 tables; a byte shuffle
// looks up 64 codes, and the 4 bytes of a row are added by one dot product with ones.
// B blocks and Q queries at once.
template <int B, int Q>
CODEWORD_INLINE void nibble_tile(const uint8_t* codes, int64_t groups, int64_t ahead, const LutQuery* queries, const Limit* limits, const float* terms,
                                 Looks& looks, int64_t place) {
    const __m512i low = _mm512_set1_epi8(15), lane = _mm512_set1_epi32(0x30201000), ones = _mm512_set1_epi8(1);
    __m512i first[B][Q], second[B][Q];
    CODEWORD_UNROLL
    for (int i = 0; i < B * Q; ++i) first[i / Q][i % Q] = second[i / Q][i % Q] = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; ++g) {
        __m512i a[B], c[B];
        CODEWORD_UNROLL
        for (int b = 0; b < B; ++b) {
            const uint8_t* at = codes + 64 * (groups * b + g);
            _mm_prefetch(reinterpret_cast<const char*>(codes + 64 * (B * g + b) + ahead), _MM_HINT_T1);
            const __m512i code = _mm512_loadu_si512(at);
            a[b] = _mm512_ternarylogic_epi32(code, low, lane, 0xEA);  // (code & low) | lane
            c[b] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(code, 4), low, lane, 0xEA);
        }
        CODEWORD_UNROLL
        for (int q = 0; q < Q; ++q) {
            const __m512i table = _mm512_loadu_si512(queries[q].bytes + 64 * g);
            CODEWORD_UNROLL
            for (int b = 0; b < B; ++b) {
                first[b][q] = _mm512_dpbusd_epi32(first[b][q], _mm512_permutexvar_epi8(a[b], table), ones);
                second[b][q] = _mm512_dpbusd_epi32(second[b][q], _mm512_permutexvar_epi8(c[b], table), ones);
            }
        }
    }
    CODEWORD_UNROLL
    for (int b = 0; b < B; ++b) {
        CODEWORD_UNROLL
        for (int q = 0; q < Q; ++q) {
            const __m512i sums = low_words(first[b][q], second[b][q]);
            _mm512_store_si512(looks.sums[place + q * TILE + b], sums);
            looks.masks[place + q * TILE + b] = passing(sums, terms ? terms + BLOCK * b : nullptr, limits[q]);
        }
    }
}

template <int Q>
void nibble_looks(const LutBlocks& blocks, const uint8_t* codes, const uint8_t* end, int64_t count, const LutQuery* queries,
                  const Limit* limits, const float* terms, Looks& looks, int at) {
    constexpr int B = Q > 1 ? 1 : 2;
    const int64_t groups = (blocks.books + 3) / 4;
    for (int64_t b = 0; b < count;) {
        const int64_t ahead = end - codes > AHEAD + 64 * groups * B ? AHEAD : 0, place = at * TILE + b;
        const float* t = terms ? terms + BLOCK * b : nullptr;
        const int done = count - b >= B ? B : 1;
        if (done == B) nibble_tile<B, Q>(codes, groups, ahead, queries, limits, t, looks, place);
        else nibble_tile<1, Q>(codes, groups, ahead, queries, limits, t, looks, place);
        b += done;
        codes += 64 * groups * done;
    }
}

// P pairs of blocks at once: 64 codes of one book a pair, looked up in the four registers of its table.
template <int P>
CODEWORD_INLINE void byte_pairs(const LutBlocks& blocks, const uint8_t* codes, int64_t ahead, const LutQuery& query, const Limit& limit,
                                const float* terms, uint16_t (*sums)[BLOCK], uint32_t* masks) {
    alignas(64) static constexpr uint16_t zip[2][32] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    const int64_t size = code_bytes(blocks);
    const uint8_t *table = query.bytes, *fetch = codes + ahead;
    __m512i even[P], odd[P];  // sums of rows 0, 2, ... (with odd ones above, modulo 2^16) and of rows 1, 3, ...
    CODEWORD_UNROLL
    for (int p = 0; p < P; ++p) even[p] = odd[p] = _mm512_setzero_si512();
    for (int64_t m = 0; m < blocks.books; ++m, table += 256, codes += BLOCK, fetch += 64 * P) {
        const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64), t2 = _mm512_loadu_si512(table + 128),
                      t3 = _mm512_loadu_si512(table + 192);
        CODEWORD_UNROLL
        for (int p = 0; p < P; ++p) {
            _mm_prefetch(reinterpret_cast<const char*>(fetch + 64 * p), _MM_HINT_T1);
            const uint8_t* at = codes + 2 * p * size;
            __m512i code = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
            code = _mm512_inserti64x4(code, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + size)), 1);
            __m512i near = _mm512_permutex2var_epi8(t0, code, t1), far = _mm512_permutex2var_epi8(t2, code, t3);
            __m512i entry = _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), near, far);
            even[p] = _mm512_add_epi16(even[p], entry);
            odd[p] = _mm512_add_epi16(odd[p], _mm512_srli_epi16(entry, 8));
        }
    }
    for (int p = 0; p < P; ++p) {
        even[p] = _mm512_sub_epi16(even[p], _mm512_slli_epi16(odd[p], 8));
        for (int half = 0; half < 2; ++half) {
            const int b = 2 * p + half;
            __m512i all = _mm512_permutex2var_epi16(even[p], _mm512_load_si512(zip[half]), odd[p]);
            _mm512_store_si512(sums[b], all);
            masks[b] = passing(all, terms ? terms + BLOCK * b : nullptr, limit);
        }
    }
}

void byte_looks(const LutBlocks& blocks, const uint8_t* codes, const uint8_t* end, int64_t count, const LutQuery& query,
                const Limit& limit, const float* terms, Looks& looks, int at) {
    const int64_t size = code_bytes(blocks);
    for (int64_t b = 0; b < count;) {
        const int64_t ahead = end - codes > AHEAD + 4 * size ? AHEAD : 0;
        const float* t = terms ? terms + BLOCK * b : nullptr;
        auto *sums = looks.sums + at * TILE + b;
        auto *masks = looks.masks + at * TILE + b;
        if (count - b >= 4) {
            byte_pairs<2>(blocks, codes, ahead, query, limit, t, sums, masks);
            b += 4;
            codes += 4 * size;
        } else if (count - b >= 2) {
            byte_pairs<1>(blocks, codes, ahead, query, limit, t, sums, masks);
            b += 2;
            codes += 2 * size;
        } else {
            plain_looks(blocks, codes, 1, query, limit, t, looks, at, b);
            return;
        }
    }
}

#endif

// All queries and blocks of a tile; end: of the codes worth fetching early.
void first_look(const LutBlocks& blocks, const uint8_t* codes, [[maybe_unused]] const uint8_t* end, int64_t count, const LutQuery* queries, int num,
                const Limit* limits, const float* terms, Looks& looks) {
    int q = 0;
#if defined(__AVX512BW__)
    if (blocks.width == 4) {
        for (; q + 4 <= num; q += 4) nibble_looks<4>(blocks, codes, end, count, queries + q, limits + q, terms, looks, q);
        for (; q + 2 <= num; q += 2) nibble_looks<2>(blocks, codes, end, count, queries + q, limits + q, terms, looks, q);
        for (; q < num; ++q) nibble_looks<1>(blocks, codes, end, count, queries + q, limits + q, terms, looks, q);
    } else if (blocks.width == 8) {
        for (; q < num; ++q) byte_looks(blocks, codes, end, count, queries[q], limits[q], terms, looks, q);
    }
#endif
    for (; q < num; ++q) plain_looks(blocks, codes, count, queries[q], limits[q], terms, looks, q, 0);
}

// ---------------------------------------------------------------- rows that passed wait, and get their distance

// Keep `high` among the k least; the largest of them bounds the k-th distance.
CODEWORD_INLINE void bound(LutQuery& query, float high) {
    float* h = query.highs;
    if (query.bounded < query.k) {
        int64_t i = query.bounded++;
        for (int64_t up; i && h[up = (i - 1) / 2] < high; i = up) h[i] = h[up];
        h[i] = high;
    } else if (high < h[0]) {
        int64_t i = 0;
        for (int64_t down; (down = 2 * i + 1) < query.k; i = down) {
            if (down + 1 < query.k && h[down] < h[down + 1]) ++down;
            if (!(high < h[down])) break;
            h[i] = h[down];
        }
        h[i] = high;
    }
}

template <int WIDTH>
CODEWORD_INLINE uint32_t code_of(const uint8_t* codes, int64_t m, int64_t j) {
    if constexpr (WIDTH == 4) return (codes[m / 4 * 64 + (j & 15) * 4 + m % 4] >> (j / 16 * 4)) & 15;
    if constexpr (WIDTH == 8) return codes[BLOCK * m + j];
    return reinterpret_cast<const uint16_t*>(codes)[BLOCK * m + j];
}

template <int WIDTH>
float table_sum(const LutBlocks& blocks, int64_t row, const float* tables) {
    const uint8_t* codes = static_cast<const uint8_t*>(blocks.codes) + row / BLOCK * code_bytes(blocks);
    const uint32_t last = static_cast<uint32_t>(blocks.size - 1);
    float sum = 0;
    for (int64_t m = 0; m < blocks.books; ++m, tables += blocks.size) {
        uint32_t code = code_of<WIDTH>(codes, m, row % BLOCK);
        sum += tables[code < last ? code : last];
    }
    return sum;
}

void settle(const LutBlocks& blocks, LutQuery& query) {
    Best best{query.distances, query.rows, query.k, query.count};
    const float high = query.bounded == query.k ? query.highs[0] : INFINITY;
    for (int64_t i = 0; i < query.waiting; ++i) {
        const LutCandidate& it = query.candidates[i];
        if (it.low > high || it.low > best.worst()) continue;
        float sum = blocks.width == 4 ? table_sum<4>(blocks, it.row, query.tables)
                    : blocks.width == 8 ? table_sum<8>(blocks, it.row, query.tables) : table_sum<16>(blocks, it.row, query.tables);
        if (blocks.terms) sum += blocks.terms[it.row];
        const float distance = sum + it.coarse;
        if (distance < INFINITY) best.offer(distance, it.row);
    }
    query.count = best.count;
    query.waiting = 0;
}

// The rows of a block that passed.
void enlist(const LutBlocks& blocks, int64_t block, uint32_t mask, const uint16_t* sums, LutQuery& query, float coarse) {
    for (; mask; mask &= mask - 1) {
        const int j = __builtin_ctz(mask);
        const int64_t row = BLOCK * block + j;
        if (blocks.allowed && !blocks.allowed[row]) continue;
        float low = -INFINITY;
        if (query.step > 0) {
            double value = query.lowest + query.step * sums[j] + coarse;
            if (blocks.terms) value += blocks.terms[row];
            const double error = margin(blocks, query.magnitude + __builtin_fabs(value) + __builtin_fabs(static_cast<double>(coarse)));
            low = static_cast<float>(value - error);
            const float high = static_cast<float>(value + query.step * static_cast<double>(blocks.books) * (1 + 0x1p-18) + error);
            if (high == high) bound(query, high);  // NaN of infinite terms bounds nothing
        }
        if (query.waiting == LUT_WAITING + query.k) settle(blocks, query);
        query.candidates[query.waiting++] = {row, low, coarse};
    }
}

}  // namespace

void lut_start(const LutBlocks& blocks, LutQuery& query) {
    round_tables(blocks, query);
    query.count = query.bounded = query.waiting = query.seen = 0;
}

void lut_span(const LutBlocks& blocks, LutQuery* queries, int num, int64_t start, int64_t stop, const float* coarse) {
    const int64_t size = code_bytes(blocks), last = (stop + BLOCK - 1) / BLOCK;
    const uint8_t *codes = static_cast<const uint8_t*>(blocks.codes), *end = codes + last * size;
    Looks looks;
    Limit limits[LUT_QUERIES];
    for (int64_t b = start / BLOCK, tile; b < last; b += tile) {
        tile = queries[0].seen / 4 + 1;  // the limit falls quickly at first
        if (tile > TILE) tile = TILE;
        if (tile > last - b) tile = last - b;
        for (int q = 0; q < num; ++q) limits[q] = limit_of(blocks, queries[q], coarse[q]);
        first_look(blocks, codes + b * size, end, tile, queries, num, limits, blocks.terms ? blocks.terms + BLOCK * b : nullptr, looks);
        for (int q = 0; q < num; ++q) {
            for (int64_t i = 0; i < tile; ++i) {
                uint32_t mask = looks.masks[q * TILE + i];
                if (b + i + 1 == last && stop % BLOCK) mask &= (uint32_t{1} << (stop % BLOCK)) - 1;
                if (mask) enlist(blocks, b + i, mask, looks.sums[q * TILE + i], queries[q], coarse[q]);
            }
            queries[q].seen += tile;
        }
    }
}

void lut_settle(const LutBlocks& blocks, LutQuery& query) { settle(blocks, query); }

void lut_merge(LutQuery& query, const LutQuery& other) {
    Best best{query.distances, query.rows, query.k, query.count};
    for (int64_t i = 0; i < other.count; ++i) best.offer(other.distances[i], other.rows[i]);
    query.count = best.count;
}

void lut_finish(LutQuery& query) {
    Best best{query.distances, query.rows, query.k, query.count};
    best.finish();
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
