// Inner products of a small integer query with the top bits of 32 rows at a time, by tables of 16 partial sums; see README.md.
#pragma once
#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int BLOCK = 32;
constexpr int64_t FLUSH = 256;  // blocks of 8 dimensions whose sums, at most 254 each, fit 16 bits

// Bytes of the tables of a query of 8 eights dimensions, on any target.
CODEWORD_INLINE int64_t table_bytes(int64_t eights) { return 64 * (eights + 1); }

// Per 8 dimensions two tables of 16 bytes: entry m holds sum over 4 dimensions of max(z, 0) where the bit in m is set, max(-z, 0) where it
// is not. Then sum (2 bit - 1) z = 2 (sum of entries) - sum |z|. Returns sum |z|. AVX-512 reads 16 dimensions an instruction: per pair of
// eights the two first tables, each twice, then the two second ones.
CODEWORD_INLINE int64_t fill_tables(const int8_t* z1, int64_t eights, uint8_t* tables) {
    typedef uint8_t u8x16 __attribute__((vector_size(16)));
    const u8x16 index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int64_t total = 0;
    for (int64_t t = 0; t < 2 * eights; ++t, z1 += 4) {
#if defined(__AVX512BW__)
        uint8_t* table = tables + 128 * (t / 4) + 64 * (t % 2) + 32 * (t / 2 % 2);
#else
        uint8_t* table = tables + 16 * t;
#endif
        u8x16 entries = index - index;
        int base = 0;
        CODEWORD_UNROLL
        for (int i = 0; i < 4; ++i) {
            total += z1[i] < 0 ? -z1[i] : z1[i];
            base += z1[i] < 0 ? -z1[i] : 0;
            // a bit adds max(z, 0) - max(-z, 0) = z
            entries += static_cast<u8x16>((index & static_cast<uint8_t>(1 << i)) != 0) & static_cast<uint8_t>(z1[i]);
        }
        entries += static_cast<uint8_t>(base);
        __builtin_memcpy(table, &entries, 16);
#if defined(__AVX512BW__)
        __builtin_memcpy(table + 16, &entries, 16);
#endif
    }
#if defined(__AVX512BW__)
    if (eights % 2)
        for (int half = 0; half < 2; ++half) __builtin_memset(tables + 128 * (eights / 2) + 64 * half + 32, 0, 32);
#endif
    return total;
}

// sums[q][j] = sum of the 2 eights table entries of row j of a block, for Q queries: the codes are read once.
#if defined(__AVX512BW__)

template <int Q>
CODEWORD_INLINE void table_sums(const uint8_t* planes, const uint8_t* const* tables, int64_t eights, int32_t (*sums)[BLOCK]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int64_t begin = 0; begin < eights; begin += FLUSH) {
        const int64_t end = eights - begin < FLUSH ? eights : begin + FLUSH;
        // 16-bit sums of even rows (with odd ones above them, modulo 2^16) and of odd rows
        __m512i even[Q], odd[Q];
        CODEWORD_UNROLL
        for (int q = 0; q < Q; ++q) even[q] = odd[q] = _mm512_setzero_si512();
        auto step = [&](__m512i code, int64_t g) __attribute__((always_inline)) {
            const __m512i one = _mm512_and_si512(code, nibble), two = _mm512_and_si512(_mm512_srli_epi16(code, 4), nibble);
            CODEWORD_UNROLL
            for (int q = 0; q < Q; ++q) {
                const uint8_t* table = tables[q] + 64 * g;
                __m512i both = _mm512_add_epi8(_mm512_shuffle_epi8(_mm512_loadu_si512(table), one),
                                               _mm512_shuffle_epi8(_mm512_loadu_si512(table + 64), two));  // at most 254
                even[q] = _mm512_add_epi16(even[q], both);
                odd[q] = _mm512_add_epi16(odd[q], _mm512_srli_epi16(both, 8));
            }
        };
        int64_t g = begin;
#pragma GCC unroll 4
        for (; g + 2 <= end; g += 2) step(_mm512_loadu_si512(planes + 32 * g), g);
        if (g < end) step(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(planes + 32 * g))), g);
        CODEWORD_UNROLL
        for (int q = 0; q < Q; ++q) {
            __m256i a = _mm256_add_epi16(_mm512_castsi512_si256(even[q]), _mm512_extracti64x4_epi64(even[q], 1));
            __m256i b = _mm256_add_epi16(_mm512_castsi512_si256(odd[q]), _mm512_extracti64x4_epi64(odd[q], 1));
            a = _mm256_sub_epi16(a, _mm256_slli_epi16(b, 8));
            __m512i c = _mm512_cvtepu16_epi32(a), d = _mm512_cvtepu16_epi32(b);
            __m512i first = _mm512_permutex2var_epi32(c, low, d), second = _mm512_permutex2var_epi32(c, high, d);
            if (begin) {
                first = _mm512_add_epi32(first, _mm512_load_si512(sums[q]));
                second = _mm512_add_epi32(second, _mm512_load_si512(sums[q] + 16));
            }
            _mm512_store_si512(sums[q], first);
            _mm512_store_si512(sums[q] + 16, second);
        }
    }
}

#elif defined(__AVX2__)

template <int Q>
CODEWORD_INLINE void table_sums(const uint8_t* planes, const uint8_t* const* tables, int64_t eights, int32_t (*sums)[BLOCK]) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int q = 0; q < Q; ++q) {
        __m256i total[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t begin = 0; begin < eights; begin += FLUSH) {
            const int64_t end = eights - begin < FLUSH ? eights : begin + FLUSH;
            __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
            for (int64_t g = begin; g < end; ++g) {
                __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(planes + 32 * g));
                __m256i first = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tables[q] + 32 * g)));
                __m256i second = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tables[q] + 32 * g + 16)));
                first = _mm256_shuffle_epi8(first, _mm256_and_si256(code, low));
                second = _mm256_shuffle_epi8(second, _mm256_and_si256(_mm256_srli_epi16(code, 4), low));
                __m256i both = _mm256_add_epi8(first, second);  // at most 254
                even = _mm256_add_epi16(even, both);
                odd = _mm256_add_epi16(odd, _mm256_srli_epi16(both, 8));
            }
            even = _mm256_sub_epi16(even, _mm256_slli_epi16(odd, 8));
            __m256i a = _mm256_unpacklo_epi16(even, odd);  // rows 0..7, 16..23
            __m256i b = _mm256_unpackhi_epi16(even, odd);  // rows 8..15, 24..31
            total[0] = _mm256_add_epi32(total[0], _mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)));
            total[1] = _mm256_add_epi32(total[1], _mm256_cvtepu16_epi32(_mm256_castsi256_si128(b)));
            total[2] = _mm256_add_epi32(total[2], _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
            total[3] = _mm256_add_epi32(total[3], _mm256_cvtepu16_epi32(_mm256_extracti128_si256(b, 1)));
        }
        for (int i = 0; i < 4; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums[q] + 8 * i), total[i]);
    }
}

#else

template <int Q>
CODEWORD_INLINE void table_sums(const uint8_t* planes, const uint8_t* const* all_tables, int64_t eights, int32_t (*all_sums)[BLOCK]) {
    for (int q = 0; q < Q; ++q) {
        const uint8_t *tables = all_tables[q], *codes = planes;
        int32_t* sums = all_sums[q];
        for (int j = 0; j < BLOCK; ++j) sums[j] = 0;
        for (int64_t g = 0; g < eights; ++g, codes += BLOCK, tables += 32) {
#if defined(__ARM_NEON) && defined(__aarch64__)
            uint8x16_t first = vld1q_u8(tables), second = vld1q_u8(tables + 16);
            for (int half = 0; half < 2; ++half) {
                uint8x16_t code = vld1q_u8(codes + 16 * half);
                uint8x16_t both = vaddq_u8(vqtbl1q_u8(first, vandq_u8(code, vdupq_n_u8(15))), vqtbl1q_u8(second, vshrq_n_u8(code, 4)));
                uint8_t bytes[16];
                vst1q_u8(bytes, both);
                for (int j = 0; j < 16; ++j) sums[16 * half + j] += bytes[j];
            }
#else
            for (int j = 0; j < BLOCK; ++j) sums[j] += tables[codes[j] & 15] + tables[16 + (codes[j] >> 4)];
#endif
        }
    }
}

#endif

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
