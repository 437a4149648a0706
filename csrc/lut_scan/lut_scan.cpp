#include "lut_scan/lut_scan.h"

#include "best.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int64_t TILE = 64;  // blocks whose first look uses one limit
constexpr int64_t BLOCK = LUT_BLOCK;

// What the first look compares: bytes' sums with an integer, or, where rows have terms, step * sum + term with a float.
struct Limit {
    int32_t sum;
    float value, step;
};

int64_t code_bytes(const LutBlocks& blocks) {  // of a block
    return blocks.width == 4 ? (blocks.books + 3) / 4 * 64 : BLOCK * blocks.books * blocks.width / 8;
}

// ---------------------------------------------------------------- rounded tables

// bytes = floor((t - lowest of its table) / step) with one step for all tables, so that lowest + step * sum of bytes never exceeds the
// sum. A quotient is at most 255 and their sum at most 65535. step = 0, bytes = 0 where tables are constant or not finite.
void round_tables(const LutBlocks& blocks, LutQuery& query) {
    const int64_t m_count = blocks.books, size = blocks.size;
    double lowest = 0, spans = 0, widest = 0, magnitude = 0;
    for (int64_t m = 0; m < m_count; ++m) {
        const float* t = query.tables + m * size;
        float low = t[0], high = t[0];
        for (int64_t i = 1; i < size; ++i) {
            low = t[i] < low ? t[i] : low;
            high = t[i] > high ? t[i] : high;
        }
        double span = static_cast<double>(high) - low;
        lowest += low;
        spans += span;
        widest = span > widest ? span : widest;
        magnitude += -low > high ? -low : high;
    }
    query.lowest = lowest;
    query.magnitude = magnitude;
    query.step = widest / 255 > spans / 65535 ? widest / 255 : spans / 65535;
    if (!(query.step > 1e-37 && magnitude < 1e38)) query.step = 0;  // float32 cannot divide by it: everything gets a second look
    query.inverse = query.step > 0 ? 1 / query.step : 0;
    const float inverse = static_cast<float>(query.inverse * (1 - 0x1p-20));  // rounding must not lift a quotient
    const int64_t stride = blocks.width == 4 ? 16 : blocks.width == 8 ? 256 : size;
    __builtin_memset(query.bytes, 0, lut_bytes(m_count, size, blocks.width));
    if (query.step == 0) return;
    for (int64_t m = 0; m < m_count; ++m) {
        const float* t = query.tables + m * size;
        uint8_t* to = query.bytes + m * stride;
        float low = t[0];
        for (int64_t i = 1; i < size; ++i) low = t[i] < low ? t[i] : low;
        for (int64_t i = 0; i < size; ++i) to[i] = static_cast<uint8_t>(static_cast<int32_t>((t[i] - low) * inverse));
    }
}

// A row that may enter the heap passes: see README.md for why the margin covers all rounding.
Limit limit_of(const LutBlocks& blocks, const LutQuery& query, float coarse, float worst) {
    Limit limit{INT32_MAX, INFINITY, static_cast<float>(query.step)};
    const double z = query.magnitude + __builtin_fabs(static_cast<double>(worst)) + __builtin_fabs(static_cast<double>(coarse));
    if (!(query.step > 0) || !(z < 1e38)) return limit;
    const double room = static_cast<double>(worst) - coarse - query.lowest + z * 0x1p-22 * static_cast<double>(blocks.books + 16);
    const double sum = room * query.inverse;
    limit.sum = sum < 0 ? -1 : sum < 1e9 ? static_cast<int32_t>(sum * (1 + 0x1p-40)) : INT32_MAX;
    limit.value = static_cast<float>(room);
    return limit;
}

// ---------------------------------------------------------------- first look: rows of whole blocks that pass the limit, as bits

template <class Code>
CODEWORD_INLINE void plain_sums(const Code* codes, int64_t books, int64_t stride, uint32_t last, const uint8_t* bytes, int32_t* sums) {
    for (int j = 0; j < BLOCK; ++j) sums[j] = 0;
    for (int64_t m = 0; m < books; ++m, codes += BLOCK, bytes += stride)
        for (int j = 0; j < BLOCK; ++j) sums[j] += bytes[codes[j] < last ? codes[j] : last];
}

CODEWORD_INLINE void plain_nibble_sums(const uint8_t* codes, int64_t books, const uint8_t* bytes, int32_t* sums) {
    for (int j = 0; j < BLOCK; ++j) sums[j] = 0;
    for (int64_t m = 0; m < (books + 3) / 4 * 4; ++m, bytes += 16) {
        const uint8_t* at = codes + m / 4 * 64 + m % 4;
        for (int j = 0; j < 16; ++j) {
            sums[j] += bytes[at[4 * j] & 15];
            sums[j + 16] += bytes[at[4 * j] >> 4];
        }
    }
}

CODEWORD_INLINE uint32_t passing(const int32_t* sums, const float* terms, Limit limit) {
    uint32_t mask = 0;
    for (int j = 0; j < BLOCK; ++j) {
        bool pass = terms ? limit.step * static_cast<float>(sums[j]) + terms[j] <= limit.value : sums[j] <= limit.sum;
        mask |= static_cast<uint32_t>(pass) << j;
    }
    return mask;
}

void plain_masks(const LutBlocks& blocks, const uint8_t* codes, int64_t count, const LutQuery& query, Limit limit, const float* terms,
                 uint32_t* masks) {
    const uint32_t last = static_cast<uint32_t>(blocks.size - 1);
    for (int64_t b = 0; b < count; ++b, codes += code_bytes(blocks)) {
        int32_t sums[BLOCK];
        if (blocks.width == 4) plain_nibble_sums(codes, blocks.books, query.bytes, sums);
        else if (blocks.width == 8) plain_sums(codes, blocks.books, 256, 255, query.bytes, sums);
        else plain_sums(reinterpret_cast<const uint16_t*>(codes), blocks.books, blocks.size, last, query.bytes, sums);
        masks[b] = passing(sums, terms ? terms + BLOCK * b : nullptr, limit);
    }
}

#if defined(__AVX512BW__)

CODEWORD_INLINE uint32_t passing16(__m512i sums, const float* terms, Limit limit) {
    if (!terms) return _mm512_cmple_epi32_mask(sums, _mm512_set1_epi32(limit.sum));
    __m512 value = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(limit.step), _mm512_cvtepi32_ps(sums)), _mm512_loadu_ps(terms));
    return _mm512_cmp_ps_mask(value, _mm512_set1_ps(limit.value), _CMP_LE_OQ);
}

// 64 bytes: the codes of 4 books for 16 rows in low nibbles, for 16 more in high ones. A register holds the 4 tables; a byte shuffle
// looks up 64 codes, and the 4 bytes of a row are added by one dot product with ones.
template <int Q>
void nibble_masks(const LutBlocks& blocks, const uint8_t* codes, int64_t count, const LutQuery* queries, const Limit* limits,
                  const float* terms, uint32_t* masks) {
    const int64_t groups = (blocks.books + 3) / 4;
    const __m512i low = _mm512_set1_epi8(15), place = _mm512_set1_epi32(0x30201000), ones = _mm512_set1_epi8(1);
    for (int64_t b = 0; b < count; ++b) {
        __m512i first[Q], second[Q];
        for (int q = 0; q < Q; ++q) first[q] = second[q] = _mm512_setzero_si512();
        for (int64_t g = 0; g < groups; ++g, codes += 64) {
            __m512i code = _mm512_loadu_si512(codes);
            __m512i a = _mm512_ternarylogic_epi32(code, low, place, 0xEA);  // (code & low) | place
            __m512i c = _mm512_ternarylogic_epi32(_mm512_srli_epi16(code, 4), low, place, 0xEA);
            CODEWORD_UNROLL
            for (int q = 0; q < Q; ++q) {
                __m512i table = _mm512_loadu_si512(queries[q].bytes + 64 * g);
                first[q] = _mm512_dpbusd_epi32(first[q], _mm512_permutexvar_epi8(a, table), ones);
                second[q] = _mm512_dpbusd_epi32(second[q], _mm512_permutexvar_epi8(c, table), ones);
            }
        }
        CODEWORD_UNROLL
        for (int q = 0; q < Q; ++q) {
            const float* t = terms ? terms + BLOCK * b : nullptr;
            masks[q * TILE + b] = passing16(first[q], t, limits[q]) | passing16(second[q], t ? t + 16 : nullptr, limits[q]) << 16;
        }
    }
}

// Two blocks at once: 64 codes of one book, looked up in four registers of table.
struct Sums64 {
    __m512i even, odd;  // 16-bit sums of rows 0, 2, ... and 1, 3, ...
};

CODEWORD_INLINE Sums64 byte_sums(const uint8_t* one, const uint8_t* two, int64_t books, const uint8_t* bytes) {
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    for (int64_t m = 0; m < books; ++m, bytes += 256) {
        __m512i code = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(one + BLOCK * m)));
        code = _mm512_inserti64x4(code, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(two + BLOCK * m)), 1);
        __m512i near = _mm512_permutex2var_epi8(_mm512_loadu_si512(bytes), code, _mm512_loadu_si512(bytes + 64));
        __m512i far = _mm512_permutex2var_epi8(_mm512_loadu_si512(bytes + 128), code, _mm512_loadu_si512(bytes + 192));
        __m512i entry = _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), near, far);
        even = _mm512_add_epi16(even, entry);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(entry, 8));
    }
    return {_mm512_sub_epi16(even, _mm512_slli_epi16(odd, 8)), odd};
}

CODEWORD_INLINE uint64_t passing64(Sums64 sums, const float* terms_one, const float* terms_two, Limit limit) {
    if (!terms_one) {
        if (limit.sum < 0) return 0;
        __m512i most = _mm512_set1_epi16(static_cast<int16_t>(limit.sum < 65535 ? limit.sum : 65535));
        return _pdep_u64(_mm512_cmple_epu16_mask(sums.even, most), 0x5555555555555555ull) |
               _pdep_u64(_mm512_cmple_epu16_mask(sums.odd, most), 0xAAAAAAAAAAAAAAAAull);
    }
    uint64_t mask = 0;
    const __m512i even_high = _mm512_srli_epi32(sums.even, 16), odd_high = _mm512_srli_epi32(sums.odd, 16);
    const __m512i word = _mm512_set1_epi32(0xFFFF);
    const __m512i part[4] = {_mm512_and_si512(sums.even, word), _mm512_and_si512(sums.odd, word), even_high, odd_high};  // rows 4i + 0, 1, 2, 3
    alignas(64) int32_t ordered[64];
    for (int p = 0; p < 4; ++p) {
        alignas(64) int32_t lane[16];
        _mm512_store_si512(lane, part[p]);
        for (int i = 0; i < 16; ++i) ordered[4 * i + p] = lane[i];
    }
    for (int i = 0; i < 4; ++i) {
        const float* terms = (i < 2 ? terms_one : terms_two) + 16 * (i & 1);
        mask |= static_cast<uint64_t>(passing16(_mm512_load_si512(ordered + 16 * i), terms, limit)) << (16 * i);
    }
    return mask;
}

void byte_masks(const LutBlocks& blocks, const uint8_t* codes, int64_t count, const LutQuery& query, Limit limit, const float* terms,
                uint32_t* masks) {
    const int64_t size = code_bytes(blocks);
    for (int64_t b = 0; b < count; b += 2) {
        const int64_t other = b + 1 < count ? b + 1 : b;
        Sums64 sums = byte_sums(codes + b * size, codes + other * size, blocks.books, query.bytes);
        uint64_t mask = passing64(sums, terms ? terms + BLOCK * b : nullptr, terms ? terms + BLOCK * other : nullptr, limit);
        masks[b] = static_cast<uint32_t>(mask);
        if (other != b) masks[other] = static_cast<uint32_t>(mask >> 32);
    }
}

#endif

// masks[q * TILE + b] for every query and block.
void all_masks(const LutBlocks& blocks, const uint8_t* codes, int64_t count, const LutQuery* queries, int num, const Limit* limits,
               const float* terms, uint32_t* masks) {
    int q = 0;
#if defined(__AVX512BW__)
    if (blocks.width == 4) {
        for (; q + 4 <= num; q += 4) nibble_masks<4>(blocks, codes, count, queries + q, limits + q, terms, masks + q * TILE);
        for (; q + 2 <= num; q += 2) nibble_masks<2>(blocks, codes, count, queries + q, limits + q, terms, masks + q * TILE);
        for (; q < num; ++q) nibble_masks<1>(blocks, codes, count, queries + q, limits + q, terms, masks + q * TILE);
    } else if (blocks.width == 8) {
        for (; q < num; ++q) byte_masks(blocks, codes, count, queries[q], limits[q], terms, masks + q * TILE);
    }
#endif
    for (; q < num; ++q) plain_masks(blocks, codes, count, queries[q], limits[q], terms, masks + q * TILE);
}

// ---------------------------------------------------------------- second look: the distance itself

template <int WIDTH>
CODEWORD_INLINE uint32_t code_of(const uint8_t* codes, int64_t m, int j) {
    if constexpr (WIDTH == 4) return (codes[m / 4 * 64 + (j & 15) * 4 + m % 4] >> (j / 16 * 4)) & 15;
    if constexpr (WIDTH == 8) return codes[BLOCK * m + j];
    return reinterpret_cast<const uint16_t*>(codes)[BLOCK * m + j];
}

template <int WIDTH>
float table_sum(const LutBlocks& blocks, const uint8_t* codes, int j, const float* tables) {
    const uint32_t last = static_cast<uint32_t>(blocks.size - 1);
    float sum = 0;
    for (int64_t m = 0; m < blocks.books; ++m, tables += blocks.size) {
        uint32_t code = code_of<WIDTH>(codes, m, j);
        sum += tables[code < last ? code : last];
    }
    return sum;
}

void second_look(const LutBlocks& blocks, const uint8_t* codes, int64_t block, uint32_t mask, LutQuery& query, float coarse, Best& best) {
    for (; mask; mask &= mask - 1) {
        const int j = __builtin_ctz(mask);
        const int64_t row = BLOCK * block + j;
        if (blocks.allowed && !blocks.allowed[row]) continue;
        float sum = blocks.width == 4 ? table_sum<4>(blocks, codes, j, query.tables)
                    : blocks.width == 8 ? table_sum<8>(blocks, codes, j, query.tables) : table_sum<16>(blocks, codes, j, query.tables);
        if (blocks.terms) sum += blocks.terms[row];
        const float distance = sum + coarse;
        if (distance < INFINITY) best.offer(distance, row);
    }
}

}  // namespace

void lut_start(const LutBlocks& blocks, LutQuery& query) {
    round_tables(blocks, query);
    query.count = query.seen = 0;
}

void lut_span(const LutBlocks& blocks, LutQuery* queries, int num, int64_t start, int64_t stop, const float* coarse) {
    const int64_t size = code_bytes(blocks), last = (stop + BLOCK - 1) / BLOCK;
    uint32_t masks[LUT_QUERIES * TILE];
    Limit limits[LUT_QUERIES];
    for (int64_t b = start / BLOCK, tile; b < last; b += tile) {
        tile = queries[0].seen / 4 + 1;  // the limit falls quickly at first
        if (tile > TILE) tile = TILE;
        if (tile > last - b) tile = last - b;
        const uint8_t* codes = static_cast<const uint8_t*>(blocks.codes) + b * size;
        for (int q = 0; q < num; ++q) {
            Best best{queries[q].distances, queries[q].rows, queries[q].k, queries[q].count};
            limits[q] = limit_of(blocks, queries[q], coarse[q], best.worst());
        }
        all_masks(blocks, codes, tile, queries, num, limits, blocks.terms ? blocks.terms + BLOCK * b : nullptr, masks);
        for (int q = 0; q < num; ++q) {
            LutQuery& query = queries[q];
            Best best{query.distances, query.rows, query.k, query.count};
            for (int64_t i = 0; i < tile; ++i) {
                uint32_t mask = masks[q * TILE + i];
                if (b + i + 1 == last && stop % BLOCK) mask &= (uint32_t{1} << (stop % BLOCK)) - 1;
                if (mask) second_look(blocks, codes + i * size, b + i, mask, query, coarse[q], best);
            }
            query.count = best.count;
            query.seen += tile;
        }
    }
}

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
