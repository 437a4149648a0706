#include "segment_sum/segment_sum.h"

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {

void segment_sum(const float* x, const int64_t* labels, const float* weights, double* sums, int64_t n, int64_t d,
                 int64_t start, int64_t stop) {
    for (int64_t row = 0; row < n; ++row) {
        const float* from = x + row * d;
        double* to = sums + labels[row] * d;
        double weight = weights ? weights[row] : 1;  // the product is exact: 24 + 24 bits
        int64_t j = start;
        for (; j + F64 <= stop; j += F64) store(to + j, load<f64v>(to + j) + widen(load<f32h>(from + j)) * weight);
        for (; j < stop; ++j) to[j] += from[j] * weight;
    }
}

void segment_count(const int64_t* labels, const float* weights, double* counts, int64_t n) {
    for (int64_t row = 0; row < n; ++row) counts[labels[row]] += weights ? weights[row] : 1;
}

bool labels_fit(const int64_t* labels, int64_t n, int64_t segments) {
    bool fit = true;
    for (int64_t row = 0; row < n; ++row) fit &= (uint64_t)labels[row] < (uint64_t)segments;
    return fit;
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
