// Binding of e8_nearest.
#include "bindings_e8.h"

#include <memory>

#include "arrays.h"
#include "e8/e8.h"
#include "isa.h"
#include "pool.h"

namespace codeword {
namespace {

// patterns (8, 256): coordinates in quarters, 2, 6 or 10.
void fill(E8Tables& t, const float* patterns) {
    for (int p = 0; p < 256; ++p) {
        int sum = 0, square = 0;
        for (int i = 0; i < 8; ++i) {
            float value = patterns[256 * i + p];
            if (value != 2 && value != 6 && value != 10) refuse("e8_nearest got a pattern with the coordinate " + std::to_string(value) + "; 2, 6 and 10 are allowed");
            t.pattern[i][p] = value;
            sum += static_cast<int>(value);
            square += static_cast<int>(value * value);
        }
        t.norm[p] = 512.0f * static_cast<float>(square);
        const bool odd = sum / 4 % 2;  // of the coordinate sum with no or two negatives
        t.flip[0][p] = odd ? 2.0f : 0.0f;
        t.flip[1][p] = odd ? 0.0f : 2.0f;
    }
    for (int b = 0; b < 256; ++b) {
        const int down = __builtin_popcount(static_cast<unsigned>(b)) & 1, bits = b ^ (down << 7);
        t.shift[b] = down ? -1.0f : 1.0f;
        for (int i = 0; i < 8; ++i) t.sign[i][b] = bits >> i & 1 ? -1.0f : 1.0f;
    }
}

void e8_nearest(In x, In patterns, Out out_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("x", x, 0);
    const int32_t* from = in<int32_t>("x", x, {n, 8});
    int64_t* to = out<int64_t>("out", out_, {n});
    for (int64_t i = 0; i < 8 * n; ++i)
        if (from[i] < -(1 << 16) || from[i] > (1 << 16)) refuse("e8_nearest got the value " + std::to_string(from[i]) + "; -65536..65536 are allowed");
    auto tables = std::make_unique<E8Tables>();
    fill(*tables, in<float>("patterns", patterns, {8, 256}));
    auto kernel = CODEWORD_PICK(e8_nearest);
    const int64_t rows = 64;
    int workers = threads(num_threads);
    nb::gil_scoped_release release;
    parallel((n + rows - 1) / rows, workers, [&](int64_t chunk, int) {
        int64_t begin = chunk * rows, end = begin + rows < n ? begin + rows : n;
        kernel(from + 8 * begin, end - begin, *tables, to + begin);
    });
}

}  // namespace

void bind_e8(nb::module_& m) {
    m.def("e8_nearest", &e8_nearest, nb::arg("x"), nb::arg("patterns"), nb::arg("out"), nb::arg("num_threads"));
}

}  // namespace codeword
