// Inner product of an integer query with all bits of one row: top bits from the planes, lower bits from rest; see README.md.
#pragma once
#include "bit_scan/first_look.h"
#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int GROUP = 32;

// A query's values as the second look wants them.
struct Split {
    const int16_t* z;   // (32 groups)
    const uint8_t* low; // (64 pairs) z = 256 high + low, zero-filled (AVX-512 only)
    const int8_t* high;
    int64_t sum_low;    // sum of low
    int64_t sum;        // sum of z
};

CODEWORD_INLINE int64_t split_bytes(int64_t groups) { return 128 * ((groups + 1) / 2); }

CODEWORD_INLINE Split split(const int16_t* z, int64_t groups, uint8_t* scratch) {
    Split out{z, scratch, reinterpret_cast<int8_t*>(scratch) + split_bytes(groups) / 2, 0, 0};
    for (int64_t i = 0; i < GROUP * groups; ++i) out.sum += z[i];
#if defined(__AVX512BW__)
    uint8_t* low = scratch;
    int8_t* high = reinterpret_cast<int8_t*>(scratch) + split_bytes(groups) / 2;
    for (int64_t i = 0; i < split_bytes(groups) / 2; ++i) {
        const int value = i < GROUP * groups ? z[i] : 0;
        low[i] = static_cast<uint8_t>(value & 255);
        high[i] = static_cast<int8_t>(value >> 8);
        out.sum_low += low[i];
    }
#endif
    return out;
}

#if defined(__AVX512BW__)

constexpr int64_t CHUNK = 32;  // pairs of groups whose products, at most 4 * 255 * (255 + 256 * 128) a lane each, fit 32 bits

// Where the field of F bits of 64 dimensions lies in two groups that follow each other after STRIDE bytes, each with the fields of the L
// bits of a value below the eighth that are not in a byte of their own: its bytes in order of dimension, and the shift of each 16 bits.
struct Field {
    uint8_t from[64];
    uint16_t shift[32];
};

template <int L, int F, int STRIDE>
constexpr Field field_of() {
    Field field{};
    int at = 0;
    for (int f = 4; f > F; f /= 2) at += L & f ? 4 * f : 0;
    for (int i = 0; i < 64; ++i) field.from[i] = static_cast<uint8_t>(STRIDE * (i / 32) + at + i % 32 % (4 * F));
    for (int i = 0; i < 32; ++i) field.shift[i] = static_cast<uint16_t>(F * (2 * i % 32 / (4 * F)));
    return field;
}

template <int L, int F, int STRIDE>
CODEWORD_INLINE __m512i field(__m512i bytes) {
    static constexpr Field where = field_of<L, F, STRIDE>();
    __m512i value = _mm512_permutexvar_epi8(_mm512_loadu_si512(where.from), bytes);
    value = _mm512_srlv_epi16(value, _mm512_loadu_si512(where.shift));
    return _mm512_and_si512(value, _mm512_set1_epi8((1 << F) - 1));
}

// Top bits of row j for the 64 dimensions that start at planes, of which eights >= 1 blocks exist.
CODEWORD_INLINE __mmask64 top_bits(const uint8_t* planes, int64_t eights, int j) {
    const __m512i first = _mm512_add_epi8(_mm512_set1_epi32(0x60402000), _mm512_set1_epi8(static_cast<char>(j)));
    auto four = [&](const uint8_t* at, int64_t count) __attribute__((always_inline)) {  // top bits of the 32 dimensions there
        __m512i a, b;
        if (count >= 4) {
            a = _mm512_loadu_si512(at), b = _mm512_loadu_si512(at + 64);
        } else {
            a = _mm512_maskz_loadu_epi8(count >= 2 ? ~0ull : ~0u, at);
            b = _mm512_maskz_loadu_epi8(count == 3 ? ~0u : 0ull, at + 64);
        }
        return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm512_castsi512_si128(_mm512_permutex2var_epi8(a, first, b))));
    };
    uint64_t bits = four(planes, eights);
    if (eights > 4) bits |= static_cast<uint64_t>(four(planes + 4 * BLOCK, eights - 4)) << 32;
    return _cvtu64_mask64(bits);
}

CODEWORD_INLINE int64_t sum_lanes(__m512i v) {
    return _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(v)), _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1))));
}

// sum u z of row j of a block. Unsigned halves of the query times signed codes and signed halves times unsigned codes, four products a
// lane. Where the lower bits are more than 8 (H), they are a byte and the L bits above it, each with sums of its own.
template <int E>
int64_t dot(const uint8_t* planes, int j, const uint8_t* rest, const Split& query, int64_t eights, int64_t groups) {
    constexpr int L = E & 7, H = E >> 3;
    constexpr int BYTES = 4 * L, STRIDE = 4 * E;
    const int64_t pairs = (groups + 1) / 2;
    int64_t total = E >= 7 ? 128 * query.sum_low : 0;
    for (int64_t begin = 0; begin < pairs; begin += CHUNK) {
        const int64_t end = pairs - begin < CHUNK ? pairs : begin + CHUNK;
        __m512i low = _mm512_setzero_si512(), high = low, byte_low = low, byte_high = low;
        for (int64_t p = begin; p < end; ++p) {
            const bool whole = 2 * p + 2 <= groups;
            const uint8_t *at = rest + 2 * STRIDE * p, *fields = at + 32 * H;
            const __mmask64 top = top_bits(planes + 8 * BLOCK * p, eights - 8 * p, j);
            const __m512i zl = _mm512_loadu_si512(query.low + 64 * p), zh = _mm512_loadu_si512(query.high + 64 * p);
            if constexpr (H) {
                __m512i byte = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
                if (whole) byte = _mm512_inserti64x4(byte, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + STRIDE)), 1);
                byte_high = _mm512_dpbusd_epi32(byte_high, byte, zh);
                byte_low = _mm512_dpbusd_epi32(byte_low, zl, _mm512_xor_si512(byte, _mm512_set1_epi8(-128)));
            }
            __m512i u = _mm512_setzero_si512();
            if constexpr (L & 6) {
                const __m512i bytes = _mm512_maskz_loadu_epi8(~0ull >> (64 - (whole ? STRIDE + BYTES : BYTES)), fields);
                if constexpr (L & 4) u = field<L, 4, STRIDE>(bytes);
                if constexpr (L & 2) {
                    __m512i two = field<L, 2, STRIDE>(bytes);
                    u = _mm512_or_si512(u, L & 4 ? _mm512_slli_epi16(two, 4) : two);
                }
            }
            if constexpr (L & 1) {
                uint32_t a, b = 0;
                __builtin_memcpy(&a, fields + BYTES - 4, 4);
                if (whole) __builtin_memcpy(&b, fields + STRIDE + BYTES - 4, 4);
                u = _mm512_mask_add_epi8(u, _cvtu64_mask64(a | static_cast<uint64_t>(b) << 32), u, _mm512_set1_epi8(1 << (L & 6)));
            }
            u = _mm512_mask_add_epi8(u, top, u, _mm512_set1_epi8(static_cast<char>(1 << L)));
            high = _mm512_dpbusd_epi32(high, u, zh);
            low = _mm512_dpbusd_epi32(low, zl, E == 7 ? _mm512_xor_si512(u, _mm512_set1_epi8(-128)) : u);
        }
        const int64_t sum = sum_lanes(_mm512_add_epi32(low, _mm512_slli_epi32(high, 8)));
        total += H ? 256 * sum + sum_lanes(_mm512_add_epi32(byte_low, _mm512_slli_epi32(byte_high, 8))) : sum;
    }
    return total;
}

#else

// Top bits of row j for the 32 dimensions that start at planes, of which eights >= 1 blocks exist.
CODEWORD_INLINE uint32_t top_bits(const uint8_t* planes, int64_t eights, int j) {
    uint32_t bits = 0;
    for (int64_t g = 0; g < 4 && g < eights; ++g) bits |= static_cast<uint32_t>(planes[BLOCK * g + j]) << (8 * g);
    return bits;
}

#if defined(__AVX2__)

// Byte i is 255 where bit i of the 32-bit string is set.
CODEWORD_INLINE __m256i spread_bits(uint32_t bits) {
    const __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(bits)), which);
    return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

// Lower bits of 32 dimensions as bytes, up to 7 of them.
template <int E>
CODEWORD_INLINE __m256i lower_bits(const uint8_t* at) {
    __m256i u = _mm256_setzero_si256();
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

CODEWORD_INLINE void add_products(__m256i u, const int16_t* z, __m256i& even, __m256i& odd) {
    const __m256i* values = reinterpret_cast<const __m256i*>(z);
    even = _mm256_add_epi32(even, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(u)), _mm256_loadu_si256(values)));
    odd = _mm256_add_epi32(odd, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(u, 1)), _mm256_loadu_si256(values + 1)));
}

CODEWORD_INLINE int64_t sum_lanes(__m256i even, __m256i odd) {
    __m256i lanes = _mm256_add_epi32(even, odd);
    __m256i wide = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes)), _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes, 1)));
    return _mm256_extract_epi64(wide, 0) + _mm256_extract_epi64(wide, 1) + _mm256_extract_epi64(wide, 2) + _mm256_extract_epi64(wide, 3);
}

// sum u z of row j of a block. Where the lower bits are more than 8 (H), they are a byte and the L bits above it, each with sums of its own.
template <int E>
int64_t dot(const uint8_t* planes, int j, const uint8_t* rest, const Split& query, int64_t eights, int64_t groups) {
    constexpr int L = E & 7, H = E >> 3;
    __m256i even = _mm256_setzero_si256(), odd = even, byte_even = even, byte_odd = even;
    const int16_t* z = query.z;
    for (int64_t g = 0; g < groups; ++g, rest += 4 * E, z += GROUP) {
        if constexpr (H) add_products(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(rest)), z, byte_even, byte_odd);
        __m256i above = spread_bits(top_bits(planes + 4 * BLOCK * g, eights - 4 * g, j));
        __m256i u = _mm256_or_si256(lower_bits<L>(rest + 32 * H), _mm256_and_si256(above, _mm256_set1_epi8(static_cast<char>(1 << L))));
        add_products(u, z, even, odd);
    }
    const int64_t sum = sum_lanes(even, odd);
    return H ? 256 * sum + sum_lanes(byte_even, byte_odd) : sum;
}

#else

template <int E>
int64_t dot(const uint8_t* planes, int j, const uint8_t* rest, const Split& query, int64_t eights, int64_t groups) {
    int64_t sum = 0;
    const int16_t* z = query.z;
    for (int64_t g = 0; g < groups; ++g, rest += 4 * E, z += GROUP) {
        const uint32_t top = top_bits(planes + 4 * BLOCK * g, eights - 4 * g, j);
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
            u |= ((top >> i) & 1) << E;
            sum += static_cast<int64_t>(u) * z[i];
        }
    }
    return sum;
}

#endif

#endif

typedef int64_t (*Dot)(const uint8_t*, int, const uint8_t*, const Split&, int64_t, int64_t);

// For 2..13 bits; null for 1.
CODEWORD_INLINE Dot dot_of(int bits) {
    constexpr Dot all[] = {nullptr, nullptr, dot<1>, dot<2>, dot<3>, dot<4>, dot<5>, dot<6>, dot<7>, dot<8>, dot<9>, dot<10>, dot<11>, dot<12>};
    return all[bits];
}

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
