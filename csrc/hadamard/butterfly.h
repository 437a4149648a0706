// The butterflies of the Walsh-Hadamard transform, shared by hadamard and rotate.
//
// Stage s replaces (a, b), s entries apart, by (a + b, a - b) in float32; stages run in the order 1, 2, 4, ... Every value takes part in
// one addition a stage, so doing several stages while values are in registers changes nothing in the result.
#pragma once
#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

// Stage S < lanes inside a vector: a lane with bit S set holds b and becomes a + (-b), the others a + b.
template <int S>
CODEWORD_INLINE f32v stage_inside(f32v v) {
    u32v flip{};
    CODEWORD_UNROLL
    for (int i = 0; i < F32; ++i) flip[i] = i & S ? 0x80000000u : 0;
    return swap<S>(v) + (f32v)((u32v)v ^ flip);
}

CODEWORD_INLINE f32v stages_inside(f32v v) {
    v = stage_inside<1>(v);
    v = stage_inside<2>(v);
    if constexpr (F32 > 4) v = stage_inside<4>(v);
    if constexpr (F32 > 8) v = stage_inside<8>(v);
    return v;
}

// log2(R) stages over R vectors, the first between neighbours.
template <int R>
CODEWORD_INLINE void stages_across(f32v* v) {
    CODEWORD_UNROLL
    for (int s = 1; s < R; s *= 2) {
        CODEWORD_UNROLL
        for (int i = 0; i < R; ++i) {
            if (i & s) continue;
            f32v a = v[i], b = v[i | s];
            v[i] = a + b;
            v[i | s] = a - b;
        }
    }
}

// The stages stride, 2 stride, ..., R/2 stride over y in place, times scale.
template <int R>
CODEWORD_INLINE void pass(float* y, int64_t n, int64_t stride, float scale) {
    for (int64_t base = 0; base < n; base += R * stride) {
        for (int64_t i = base; i < base + stride; i += F32) {
            f32v v[R];
            CODEWORD_UNROLL
            for (int r = 0; r < R; ++r) v[r] = load<f32v>(y + i + r * stride);
            stages_across<R>(v);
            CODEWORD_UNROLL
            for (int r = 0; r < R; ++r) store(y + i + r * stride, v[r] * scale);
        }
    }
}

// All stages of x (n a power of two) into y, then one product with scale. x == y is allowed.
CODEWORD_INLINE void butterflies(const float* x, float* y, int64_t n, float scale) {
    if (n < 4 * F32) {  // fewer entries than four vectors: plain loops
        if (x != y) memcpy(y, x, n * sizeof(float));
        for (int64_t s = 1; s < n; s *= 2)
            for (int64_t i = 0; i < n; ++i)
                if (!(i & s)) {
                    float a = y[i], b = y[i + s];
                    y[i] = a + b;
                    y[i + s] = a - b;
                }
        for (int64_t i = 0; i < n; ++i) y[i] *= scale;
        return;
    }
    int64_t stride = 4 * F32;
    // Multiplying by one is exact, so only the last pass scales.
    float first = stride == n ? scale : 1.0f;
    for (int64_t i = 0; i < n; i += 4 * F32) {
        f32v v[4];
        CODEWORD_UNROLL
        for (int r = 0; r < 4; ++r) v[r] = stages_inside(load<f32v>(x + i + r * F32));
        stages_across<4>(v);
        CODEWORD_UNROLL
        for (int r = 0; r < 4; ++r) store(y + i + r * F32, v[r] * first);
    }
    while (stride < n) {
        int64_t left = n / stride;
        int64_t radix = left == 2 ? 2 : left == 4 || left == 16 ? 4 : 8;
        float last = stride * radix == n ? scale : 1.0f;
        if (radix == 8) pass<8>(y, n, stride, last);
        else if (radix == 4) pass<4>(y, n, stride, last);
        else pass<2>(y, n, stride, last);
        stride *= radix;
    }
}

}  // namespace
}  // namespace CODEWORD_TARGET
}  // namespace codeword
