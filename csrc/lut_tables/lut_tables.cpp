#include "lut_tables/lut_tables.h"

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

// N vectors of codewords for one query.
template <int N>
CODEWORD_INLINE void sums(const float* query, int64_t dim, double factor, const double* panel, const double* squares, int64_t wide, f64v* sum) {
    CODEWORD_UNROLL
    for (int n = 0; n < N; ++n) sum[n] = load<f64v>(squares + n * F64);
    for (int64_t i = 0; i < dim; ++i, panel += wide) {
        const f64v q = splat(factor * static_cast<double>(query[i]));  // exact: factor is a power of two, up to its sign
        CODEWORD_UNROLL
        for (int n = 0; n < N; ++n) sum[n] = fma(q, load<f64v>(panel + n * F64), sum[n]);  // the product is exact, so fused is the same
    }
}

}  // namespace

void lut_tables(const float* queries, int64_t count, int64_t query_stride, const float* codebook, int64_t size, int64_t dim, double factor,
                bool with_squares, float* out, int64_t out_stride, double* scratch) {
    const int64_t wide = (size + 7) / 8 * 8;
    double *squares = scratch, *panel = scratch + wide;  // panel (dim, wide): the codebook transposed
    for (int64_t k = 0; k < wide; ++k) {
        double square = 0;
        for (int64_t i = 0; i < dim; ++i) {
            const double c = k < size ? static_cast<double>(codebook[k * dim + i]) : 0.0;
            panel[i * wide + k] = c;
            square += c * c;
        }
        squares[k] = with_squares ? square : 0.0;
    }
    for (int64_t q = 0; q < count; ++q, queries += query_stride, out += out_stride) {
        int64_t k = 0;
        f64v sum[4];
        for (; k + 4 * F64 <= size; k += 4 * F64) {
            sums<4>(queries, dim, factor, panel + k, squares + k, wide, sum);
            for (int n = 0; n < 4; ++n) store(out + k + n * F64, narrow(sum[n]));
        }
        for (; k < size; k += F64) {
            sums<1>(queries, dim, factor, panel + k, squares + k, wide, sum);
            for (int64_t l = 0; l < F64 && k + l < size; ++l) out[k + l] = static_cast<float>(sum[0][l]);
        }
    }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
