#include "hadamard/hadamard.h"

#include "hadamard/butterfly.h"

namespace codeword {
namespace CODEWORD_TARGET {

void hadamard(const float* x, float* out, int64_t width, float scale, int64_t start, int64_t stop) {
    for (int64_t row = start; row < stop; ++row) butterflies(x + row * width, out + row * width, width, scale);
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
