// Vectors as wide as the target's registers, over the vector extensions of GCC and Clang.
//
// + - * / & | ^ ~ << >> < == ?: work lane by lane on these types, so a kernel written with them is right on every width by construction.
// Only what the extensions cannot say (fused multiply-add, max as one instruction) is spelled per target. Everything is in an anonymous
// namespace and always inlined: a kernel object must hold no symbol that another object could be linked to.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) || defined(CODEWORD_WIDE)
#define CODEWORD_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CODEWORD_VECTOR_BYTES 32
#else
#define CODEWORD_VECTOR_BYTES 16
#endif

#define CODEWORD_INLINE static inline __attribute__((always_inline, unused))
#if defined(__clang__)
#define CODEWORD_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CODEWORD_UNROLL _Pragma("GCC unroll 64")
#endif

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int VECTOR_BYTES = CODEWORD_VECTOR_BYTES;
constexpr int F32 = VECTOR_BYTES / 4;  // float32 lanes
constexpr int F64 = VECTOR_BYTES / 8;  // float64 lanes

typedef float f32v __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t i32v __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t u32v __attribute__((vector_size(VECTOR_BYTES)));
typedef double f64v __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t i64v __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t u64v __attribute__((vector_size(VECTOR_BYTES)));
typedef uint8_t u8v __attribute__((vector_size(VECTOR_BYTES)));
typedef float f32h __attribute__((vector_size(VECTOR_BYTES / 2)));  // as many lanes as f64v

// Unaligned loads and stores of any of these types.
template <class V>
CODEWORD_INLINE V load(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof(V));
    return v;
}

template <class V>
CODEWORD_INLINE void store(void* to, V v) {
    __builtin_memcpy(to, &v, sizeof(V));
}

// a in every lane. Spelled out because compilers make one broadcast of this, but neither of a loop nor of 0 + a (another number for -0).
CODEWORD_INLINE f32v splat(float a) {
#if CODEWORD_VECTOR_BYTES == 64
    return f32v{a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
#elif CODEWORD_VECTOR_BYTES == 32
    return f32v{a, a, a, a, a, a, a, a};
#else
    return f32v{a, a, a, a};
#endif
}

CODEWORD_INLINE f64v splat(double a) {
#if CODEWORD_VECTOR_BYTES == 64
    return f64v{a, a, a, a, a, a, a, a};
#elif CODEWORD_VECTOR_BYTES == 32
    return f64v{a, a, a, a};
#else
    return f64v{a, a};
#endif
}

CODEWORD_INLINE f64v widen(f32h a) { return __builtin_convertvector(a, f64v); }
CODEWORD_INLINE f32h narrow(f64v a) { return __builtin_convertvector(a, f32h); }

// a * b + c, fused where the target can: for screens whose error bound covers both, and for products that are exact anyway.
CODEWORD_INLINE f32v fma(f32v a, f32v b, f32v c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__) && CODEWORD_VECTOR_BYTES == 32
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

CODEWORD_INLINE f64v fma(f64v a, f64v b, f64v c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__) && CODEWORD_VECTOR_BYTES == 32
    return _mm256_fmadd_pd(a, b, c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return vfmaq_f64(c, a, b);
#else
    return a * b + c;
#endif
}

// The larger lane; b where a is NaN.
CODEWORD_INLINE f32v max(f32v a, f32v b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__) && CODEWORD_VECTOR_BYTES == 32
    return _mm256_max_ps(a, b);
#elif defined(__SSE2__) && CODEWORD_VECTOR_BYTES == 16
    return _mm_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

// The smaller lane; b where a is NaN.
CODEWORD_INLINE f32v min(f32v a, f32v b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__) && CODEWORD_VECTOR_BYTES == 32
    return _mm256_min_ps(a, b);
#elif defined(__SSE2__) && CODEWORD_VECTOR_BYTES == 16
    return _mm_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

// Bit i is set where lane i of a comparison holds.
CODEWORD_INLINE uint32_t any_of(i32v mask) {
#if defined(__AVX512F__)
    return (uint32_t)_mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__) && CODEWORD_VECTOR_BYTES == 32
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#elif defined(__SSE2__) && CODEWORD_VECTOR_BYTES == 16
    return (uint32_t)_mm_movemask_ps((__m128)mask);
#else
    uint32_t bits = 0;
    CODEWORD_UNROLL
    for (int i = 0; i < F32; ++i) bits |= (uint32_t)(mask[i] & 1) << i;
    return bits;
#endif
}

// Lane i takes lane i ^ S.
template <int S>
CODEWORD_INLINE f32v swap(f32v v) {
#if CODEWORD_VECTOR_BYTES == 64
    return __builtin_shufflevector(v, v, 0 ^ S, 1 ^ S, 2 ^ S, 3 ^ S, 4 ^ S, 5 ^ S, 6 ^ S, 7 ^ S,
                                   8 ^ S, 9 ^ S, 10 ^ S, 11 ^ S, 12 ^ S, 13 ^ S, 14 ^ S, 15 ^ S);
#elif CODEWORD_VECTOR_BYTES == 32
    return __builtin_shufflevector(v, v, 0 ^ S, 1 ^ S, 2 ^ S, 3 ^ S, 4 ^ S, 5 ^ S, 6 ^ S, 7 ^ S);
#else
    return __builtin_shufflevector(v, v, 0 ^ S, 1 ^ S, 2 ^ S, 3 ^ S);
#endif
}

// The largest lane.
CODEWORD_INLINE float highest(f32v v) {
    if constexpr (F32 > 8) v = max(v, swap<8 % F32>(v));
    if constexpr (F32 > 4) v = max(v, swap<4 % F32>(v));
    v = max(v, swap<2>(v));
    v = max(v, swap<1>(v));
    return v[0];
}

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
