#include "bit_scan/bit_scan.h"

#include "best.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int BLOCK = 32;
constexpr int GROUP = 32;
constexpr int64_t FLUSH = 256;  // blocks of 8 dimensions whose sums, at most 254 each, fit 16 bits

// ---------------------------------------------------------------- first look: top bits by tables

// Per 8 dimensions two tables of 16 bytes: entry m holds sum over 4 dimensions of max(z, 0) where the bit in m is set, max(-z, 0) where it
// is not. Then sum (2 bit - 1) z = 2 (sum of entries) - sum |z|. Returns sum |z|.
int64_t fill_tables(const int8_t* z1, int64_t eights, uint8_t* tables) {
    int64_t total = 0;
    for (int64_t t = 0; t < 2 * eights; ++t, z1 += 4, tables += 16) {
        int base = 0;
        for (int i = 0; i < 4; ++i) {
            total += z1[i] < 0 ? -z1[i] : z1[i];
            base += z1[i] < 0 ? -z1[i] : 0;
        }
        tables[0] = static_cast<uint8_t>(base);
        for (int m = 1; m < 16; ++m)  // from the entry without the lowest set bit: that bit adds max(z,0) - max(-z,0) = z
            tables[m] = static_cast<uint8_t>(tables[m & (m - 1)] + z1[__builtin_ctz(m)]);
    }
    return total;
}

// sums[j] = sum of the 2 eights table entries of row j of a block.
#if defined(__AVX2__)

struct Sums16 {
    __m256i even, odd;  // 16-bit sums: even rows (with odd ones above them, modulo 2^16) and odd rows
};

CODEWORD_INLINE Sums16 add_entries(const uint8_t* planes, const uint8_t* tables, int64_t eights) {
    const __m256i low = _mm256_set1_epi8(15);
    Sums16 sums{_mm256_setzero_si256(), _mm256_setzero_si256()};
    int64_t g = 0;
#if defined(__AVX512BW__)
    const __m512i low2 = _mm512_set1_epi8(15);
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    for (; g + 2 <= eights; g += 2) {
        __m512i code = _mm512_loadu_si512(planes + 32 * g), table = _mm512_loadu_si512(tables + 32 * g);
        __m512i first = _mm512_shuffle_epi8(_mm512_shuffle_i64x2(table, table, 0xA0), _mm512_and_si512(code, low2));
        __m512i second = _mm512_shuffle_epi8(_mm512_shuffle_i64x2(table, table, 0xF5), _mm512_and_si512(_mm512_srli_epi16(code, 4), low2));
        __m512i both = _mm512_add_epi8(first, second);
        even = _mm512_add_epi16(even, both);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(both, 8));
    }
    sums.even = _mm256_add_epi16(_mm512_castsi512_si256(even), _mm512_extracti64x4_epi64(even, 1));
    sums.odd = _mm256_add_epi16(_mm512_castsi512_si256(odd), _mm512_extracti64x4_epi64(odd, 1));
#endif
    for (; g < eights; ++g) {
        __m256i code = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(planes + 32 * g));
        __m256i first = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tables + 32 * g)));
        __m256i second = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tables + 32 * g + 16)));
        first = _mm256_shuffle_epi8(first, _mm256_and_si256(code, low));
        second = _mm256_shuffle_epi8(second, _mm256_and_si256(_mm256_srli_epi16(code, 4), low));
        __m256i both = _mm256_add_epi8(first, second);  // at most 254
        sums.even = _mm256_add_epi16(sums.even, both);
        sums.odd = _mm256_add_epi16(sums.odd, _mm256_srli_epi16(both, 8));
    }
    sums.even = _mm256_sub_epi16(sums.even, _mm256_slli_epi16(sums.odd, 8));
    return sums;
}

CODEWORD_INLINE void table_sums(const uint8_t* planes, const uint8_t* tables, int64_t eights, int32_t* sums) {
    __m256i total[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t g = 0; g < eights; g += FLUSH) {
        Sums16 part = add_entries(planes + 32 * g, tables + 32 * g, eights - g < FLUSH ? eights - g : FLUSH);
        __m256i a = _mm256_unpacklo_epi16(part.even, part.odd);  // rows 0..7, 16..23
        __m256i b = _mm256_unpackhi_epi16(part.even, part.odd);  // rows 8..15, 24..31
        total[0] = _mm256_add_epi32(total[0], _mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)));
        total[1] = _mm256_add_epi32(total[1], _mm256_cvtepu16_epi32(_mm256_castsi256_si128(b)));
        total[2] = _mm256_add_epi32(total[2], _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
        total[3] = _mm256_add_epi32(total[3], _mm256_cvtepu16_epi32(_mm256_extracti128_si256(b, 1)));
    }
    for (int i = 0; i < 4; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 8 * i), total[i]);
}

#else

CODEWORD_INLINE void table_sums(const uint8_t* planes, const uint8_t* tables, int64_t eights, int32_t* sums) {
    for (int j = 0; j < BLOCK; ++j) sums[j] = 0;
    for (int64_t g = 0; g < eights; ++g, planes += BLOCK, tables += 32) {
#if defined(__ARM_NEON) && defined(__aarch64__)
        uint8x16_t first = vld1q_u8(tables), second = vld1q_u8(tables + 16);
        for (int half = 0; half < 2; ++half) {
            uint8x16_t code = vld1q_u8(planes + 16 * half);
            uint8x16_t both = vaddq_u8(vqtbl1q_u8(first, vandq_u8(code, vdupq_n_u8(15))), vqtbl1q_u8(second, vshrq_n_u8(code, 4)));
            uint8_t bytes[16];
            vst1q_u8(bytes, both);
            for (int j = 0; j < 16; ++j) sums[16 * half + j] += bytes[j];
        }
#else
        for (int j = 0; j < BLOCK; ++j) sums[j] += tables[planes[j] & 15] + tables[16 + (planes[j] >> 4)];
#endif
    }
}

#endif

// Lower bounds (bits > 1) or distances (bits = 1) of a block from its table sums, and the rows not beyond worst as bits of the result.
CODEWORD_INLINE uint32_t first_look(const int32_t* sums, int32_t absolute, const float* factors, const BitQuery& query, bool one_bit, float base,
                                    float spread, float worst, float* bounds) {
    const float *add = factors, *rescale = factors + BLOCK, *error = factors + 2 * BLOCK;
    uint32_t near = 0;
    constexpr int LANES = F32 < 8 ? F32 : 8;
    typedef float fv __attribute__((vector_size(4 * LANES)));
    typedef int32_t iv __attribute__((vector_size(4 * LANES)));
    for (int j = 0; j < BLOCK; j += LANES) {
        iv t = 2 * load<iv>(sums + j) - absolute;
        fv part = load<fv>(rescale + j) * (query.step1 * __builtin_convertvector(t, fv));
        if (query.l2) part = load<fv>(add + j) + part;
        fv bound = base + part;
        if (!one_bit) bound = bound - load<fv>(error + j) * spread;
        store(bounds + j, bound);
        iv within = bound <= (fv{} + worst);
#if defined(__AVX2__)
        near |= static_cast<uint32_t>(_mm256_movemask_ps((__m256)within)) << j;
#else
        for (int i = 0; i < LANES; ++i) near |= static_cast<uint32_t>(within[i] & 1) << (j + i);
#endif
    }
    return near;
}

// ---------------------------------------------------------------- second look: all bits of one row

#if defined(__AVX2__)

// Byte i is 255 where bit i of the 32-bit string is set.
CODEWORD_INLINE __m256i spread_bits(uint32_t bits) {
    const __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(bits)), which);
    return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

// Lower bits of 32 dimensions as bytes.
template <int E>
CODEWORD_INLINE __m256i lower_bits(const uint8_t* at) {
    __m256i u = _mm256_setzero_si256();
    if constexpr (E & 8) {
        u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
        at += 32;
    }
    if constexpr (E & 4) {
        __m128i pair = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        u = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(pair, 4), pair), _mm256_set1_epi8(15));
        at += 16;
    }
    if constexpr (E & 2) {
        uint64_t four;
        __builtin_memcpy(&four, at, 8);
        __m256i field = _mm256_srlv_epi64(_mm256_set1_epi64x(static_cast<int64_t>(four)), _mm256_setr_epi64x(0, 2, 4, 6));
        field = _mm256_and_si256(field, _mm256_set1_epi8(3));
        u = _mm256_or_si256(u, _mm256_slli_epi16(field, E & 4));
        at += 8;
    }
    if constexpr (E & 1) {
        uint32_t bits;
        __builtin_memcpy(&bits, at, 4);
        u = _mm256_or_si256(u, _mm256_and_si256(spread_bits(bits), _mm256_set1_epi8(1 << (E & 6))));
    }
    return u;
}

// sum u z over all dimensions; top: bit string of the row's top bits, 4 bytes a group.
template <int E>
int64_t dot(const uint8_t* top, const uint8_t* rest, const int16_t* z, int64_t groups) {
    __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
    for (int64_t g = 0; g < groups; ++g, rest += 4 * E, top += 4, z += GROUP) {
        uint32_t bits;
        __builtin_memcpy(&bits, top, 4);
        __m256i above = spread_bits(bits), u = lower_bits<E>(rest);
        __m256i a, b;
        if constexpr (E < 8) {
            u = _mm256_or_si256(u, _mm256_and_si256(above, _mm256_set1_epi8(static_cast<char>(1 << E))));
            a = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(u));
            b = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(u, 1));
        } else {
            const __m256i bit = _mm256_set1_epi16(256);
            a = _mm256_or_si256(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(u)), _mm256_and_si256(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(above)), bit));
            b = _mm256_or_si256(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(u, 1)),
                                _mm256_and_si256(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(above, 1)), bit));
        }
        even = _mm256_add_epi32(even, _mm256_madd_epi16(a, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(z))));
        odd = _mm256_add_epi32(odd, _mm256_madd_epi16(b, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(z + 16))));
    }
    __m256i lanes = _mm256_add_epi32(even, odd);
    __m256i wide = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes)), _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes, 1)));
    return _mm256_extract_epi64(wide, 0) + _mm256_extract_epi64(wide, 1) + _mm256_extract_epi64(wide, 2) + _mm256_extract_epi64(wide, 3);
}

#else

template <int E>
int64_t dot(const uint8_t* top, const uint8_t* rest, const int16_t* z, int64_t groups) {
    int64_t sum = 0;
    for (int64_t g = 0; g < groups; ++g, rest += 4 * E, top += 4, z += GROUP) {
        for (int i = 0; i < GROUP; ++i) {
            const uint8_t* at = rest;
            int u = 0, shift = 0;
            CODEWORD_UNROLL
            for (int f = 8; f; f /= 2) {
                if (!(E & f)) continue;
                int place = f == 1 ? i / 8 : i % (4 * f), right = f == 1 ? i % 8 : f * (i / (4 * f));
                u |= ((at[place] >> right) & ((1 << f) - 1)) << shift;
                shift += f;
                at += 4 * f;
            }
            u |= ((top[i / 8] >> (i % 8)) & 1) << E;
            sum += static_cast<int64_t>(u) * z[i];
        }
    }
    return sum;
}

#endif

typedef int64_t (*Dot)(const uint8_t*, const uint8_t*, const int16_t*, int64_t);

Dot dot_of(int bits) {
    constexpr Dot all[] = {nullptr, nullptr, dot<1>, dot<2>, dot<3>, dot<4>, dot<5>, dot<6>, dot<7>, dot<8>};
    return all[bits];
}

// ---------------------------------------------------------------- one row's bits, one query

// Bit string of the top bits of row j of a block, zero-filled to 4 bytes a group.
CODEWORD_INLINE void gather_top(const uint8_t* planes, int64_t eights, int64_t groups, int j, uint8_t* top) {
    for (int64_t g = 0; g < eights; ++g) top[g] = planes[BLOCK * g + j];
    for (int64_t g = eights; g < 4 * groups; ++g) top[g] = 0;
}

}  // namespace

void bit_scan(const BitBlocks& blocks, const BitQuery& query, const int64_t* spans, const float* coarse, int64_t probes, int64_t k,
              uint8_t* tables, float* distances, int64_t* rows) {
    const int64_t absolute = fill_tables(query.z1, blocks.eights, tables);
    uint8_t* top = tables + 32 * blocks.eights;
    int64_t total = 0;
    for (int64_t i = 0; i < GROUP * blocks.groups && blocks.bits > 1; ++i) total += query.z[i];
    const int64_t centre = ((int64_t{1} << blocks.bits) - 1) * total;
    const Dot dot_all = dot_of(blocks.bits);
    Best best{distances, rows, k, 0};
    for (int64_t p = 0; p < probes; ++p) {
        const int64_t start = spans[2 * p], stop = spans[2 * p + 1];
        const float base = coarse[p] + query.offset;
        for (int64_t first = start; first < stop; first += BLOCK) {
            const int64_t b = first / BLOCK;
            const uint8_t* planes = blocks.planes + b * blocks.eights * BLOCK;
            float spread = query.slack;
            if (query.l2) {
                float square = base + blocks.centers[b];
                spread = query.slack * __builtin_sqrtf(square > 0 ? square : 0.0f);
            }
            alignas(64) int32_t sums[BLOCK];
            alignas(64) float bounds[BLOCK];
            table_sums(planes, tables, blocks.eights, sums);
            uint32_t near = first_look(sums, static_cast<int32_t>(absolute), blocks.factors + b * 3 * BLOCK, query, blocks.bits == 1, base, spread,
                                       best.worst(), bounds);
            if (stop - first < BLOCK) near &= (uint32_t{1} << (stop - first)) - 1;
            for (; near; near &= near - 1) {
                const int j = __builtin_ctz(near);
                const int64_t row = first + j;
                if (!(bounds[j] <= best.worst()) || (blocks.allowed && !blocks.allowed[row])) continue;
                float distance = bounds[j];
                if (blocks.bits > 1) {
                    gather_top(planes, blocks.eights, blocks.groups, j, top);
                    const int64_t t = 2 * dot_all(top, blocks.rest + row * blocks.width, query.z, blocks.groups) - centre;
                    const float* factors = blocks.rest_factors + 3 * row;
                    float part = factors[1] * (query.step2 * static_cast<float>(t));
                    if (query.l2) part = factors[0] + part;
                    distance = base + part;
                }
                best.offer(distance, row);
            }
        }
    }
    best.finish();
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
