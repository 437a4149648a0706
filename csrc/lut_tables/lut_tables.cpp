#include "lut_tables/lut_tables.h"

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

// Q queries, N vectors of codewords from k on.
template <int Q, int N>
CODEWORD_INLINE void tile(const float* queries, int64_t query_stride, const float* codebook, int64_t size, int64_t dim, double factor,
                          const double* first, float* out, int64_t out_stride) {
    f64v sum[Q][N];
    CODEWORD_UNROLL
    for (int q = 0; q < Q; ++q) {
        CODEWORD_UNROLL
        for (int n = 0; n < N; ++n) sum[q][n] = first ? load<f64v>(first + n * F64) : splat(0.0);
    }
    for (int64_t i = 0; i < dim; ++i, codebook += size) {
        f64v c[N];
        CODEWORD_UNROLL
        for (int n = 0; n < N; ++n) c[n] = widen(load<f32h>(codebook + n * F64));
        CODEWORD_UNROLL
        for (int q = 0; q < Q; ++q) {
            const f64v a = splat(factor * static_cast<double>(queries[q * query_stride + i]));  // exact: factor is a power of two, negative
            CODEWORD_UNROLL
            for (int n = 0; n < N; ++n) sum[q][n] = fma(a, c[n], sum[q][n]);  // the product is exact: fused is the same
        }
    }
    CODEWORD_UNROLL
    for (int q = 0; q < Q; ++q) {
        CODEWORD_UNROLL
        for (int n = 0; n < N; ++n) store(out + q * out_stride + n * F64, narrow(sum[q][n]));
    }
}

template <int Q>
void rows(const float* queries, int64_t query_stride, const float* codebook, int64_t size, int64_t dim, double factor, const double* first,
          float* out, int64_t out_stride) {
    constexpr int N = Q > 1 ? 2 : 4;
    int64_t k = 0;
    for (; k + N * F64 <= size; k += N * F64)
        tile<Q, N>(queries, query_stride, codebook + k, size, dim, factor, first ? first + k : nullptr, out + k, out_stride);
    if constexpr (N > 2) {
        for (; k + 2 * F64 <= size; k += 2 * F64)
            tile<Q, 2>(queries, query_stride, codebook + k, size, dim, factor, first ? first + k : nullptr, out + k, out_stride);
    }
    for (; k + F64 <= size; k += F64)
        tile<Q, 1>(queries, query_stride, codebook + k, size, dim, factor, first ? first + k : nullptr, out + k, out_stride);
    for (; k < size; ++k) {
        for (int q = 0; q < Q; ++q) {
            double sum = first ? first[k] : 0.0;
            for (int64_t i = 0; i < dim; ++i) sum += factor * static_cast<double>(queries[q * query_stride + i]) * static_cast<double>(codebook[i * size + k]);
            out[q * out_stride + k] = static_cast<float>(sum);
        }
    }
}

}  // namespace

void lut_tables(const float* queries, int64_t count, int64_t query_stride, const float* codebook, int64_t size, int64_t dim, double factor,
                const double* first, float* out, int64_t out_stride) {
    int64_t q = 0;
    for (; q + 4 <= count; q += 4)
        rows<4>(queries + q * query_stride, query_stride, codebook, size, dim, factor, first, out + q * out_stride, out_stride);
    for (; q < count; ++q) rows<1>(queries + q * query_stride, query_stride, codebook, size, dim, factor, first, out + q * out_stride, out_stride);
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
