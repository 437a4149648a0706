#include "rotate/rotate.h"

#include "hadamard/butterfly.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr float SQRT_HALF = 0.70710678118654752440;

CODEWORD_INLINE void times_signs(const float* x, const float* signs, float* y, int64_t n) {
    int64_t i = 0;
    for (; i + F32 <= n; i += F32) store(y + i, load<f32v>(x + i) * load<f32v>(signs + i));
    for (; i < n; ++i) y[i] = x[i] * signs[i];
}

// (a, b) -> ((a + b) / sqrt(2), (a - b) / sqrt(2)) on both halves; the middle entry of an odd width stays.
CODEWORD_INLINE void kac(float* y, int64_t n) {
    int64_t half = n / 2, i = 0;
    float *first = y, *second = y + n - half;
    for (; i + F32 <= half; i += F32) {
        f32v a = load<f32v>(first + i), b = load<f32v>(second + i);
        store(first + i, (a + b) * SQRT_HALF);
        store(second + i, (a - b) * SQRT_HALF);
    }
    for (; i < half; ++i) {
        float a = first[i], b = second[i];
        first[i] = (a + b) * SQRT_HALF;
        second[i] = (a - b) * SQRT_HALF;
    }
}

}  // namespace

void rotate(const float* x, const float* signs, float* out, int64_t width, int64_t size, float scale, bool inverse,
            int64_t start, int64_t stop) {
    int64_t rest = width - size;
    for (int64_t row = start; row < stop; ++row) {
        const float* from = x + row * width;
        float* y = out + row * width;
        if (inverse) memcpy(y, from, width * sizeof(float));
        for (int step = 0; step < 4; ++step) {
            int round = inverse ? 3 - step : step;
            float* part = round % 2 ? y + rest : y;
            if (inverse) {
                if (rest) kac(y, width);
                butterflies(part, part, size, scale);
                times_signs(y, signs + round * width, y, width);
            } else {
                times_signs(step ? y : from, signs + round * width, y, width);
                butterflies(part, part, size, scale);
                if (rest) kac(y, width);
            }
        }
    }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
