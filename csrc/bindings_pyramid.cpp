// Bindings of pyramid_project, pyramid_number and pyramid_point.
#include "bindings_pyramid.h"

#include <memory>

#include "arrays.h"
#include "isa.h"
#include "pool.h"
#include "pyramid/pyramid.h"

namespace codeword {
namespace {

constexpr int64_t ROWS = 64;  // groups a chunk: whole vectors of lanes on every target

void pyramid_project(In x, int64_t pulses, Out points_, Out gains_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("x", x, 0), dim = size("x", x, 1);
    if (dim < 1 || dim > PYRAMID_DIM) refuse("pyramid_project got groups of " + std::to_string(dim) + "; 1..1024 are allowed");
    if (pulses < 1 || pulses >= (1 << 20)) refuse("pyramid_project got " + std::to_string(pulses) + " pulses; 1..2^20 are allowed");
    const float* from = in<float>("x", x, {n, dim});
    int64_t* points = out<int64_t>("points", points_, {n, dim});
    double* gains = out<double>("gains", gains_, {n});
    int workers = threads(num_threads);
    struct alignas(64) Line { char bytes[64]; };
    const size_t lines = 2 * static_cast<size_t>(dim);
    std::unique_ptr<Line[]> scratch(new Line[lines * static_cast<size_t>(workers)]);
    auto kernel = CODEWORD_PICK(pyramid_project);
    nb::gil_scoped_release release;
    parallel((n + ROWS - 1) / ROWS, workers, [&](int64_t chunk, int slot) {
        int64_t begin = chunk * ROWS, count = n - begin < ROWS ? n - begin : ROWS;
        kernel(from + begin * dim, count, dim, pulses, points + begin * dim, gains + begin, scratch.get() + lines * static_cast<size_t>(slot));
    });
}

PyramidTables tables(const In& counts, const In& sums) {
    int64_t dim = size("counts", counts, 0), columns = size("counts", counts, 1);
    if (dim < 1 || columns < 2) refuse("the pyramid's tables are empty");
    return {in<int64_t>("counts", counts, {dim, columns}), in<int64_t>("sums", sums, {dim, columns}), dim, columns - 1};
}

void pyramid_number(In points_, In counts, In sums, Out index_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    PyramidTables t = tables(counts, sums);
    int64_t n = size("points", points_, 0);
    const int64_t* points = in<int64_t>("points", points_, {n, t.dim});
    int64_t* index = out<int64_t>("index", index_, {n});
    for (int64_t row = 0; row < n; ++row) {
        int64_t left = t.pulses;
        for (int64_t i = 0; i < t.dim && left >= 0; ++i) {
            int64_t y = points[row * t.dim + i];
            left = y > t.pulses || y < -t.pulses ? -1 : left - (y < 0 ? -y : y);
        }
        if (left) refuse("pyramid_number got point " + std::to_string(row) + " of another norm than " + std::to_string(t.pulses));
    }
    auto kernel = CODEWORD_PICK(pyramid_number);
    int workers = threads(num_threads);
    nb::gil_scoped_release release;
    parallel((n + ROWS - 1) / ROWS, workers, [&](int64_t chunk, int) {
        int64_t begin = chunk * ROWS, count = n - begin < ROWS ? n - begin : ROWS;
        kernel(points + begin * t.dim, count, t, index + begin);
    });
}

void pyramid_point(In index_, In counts, In sums, Out points_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    PyramidTables t = tables(counts, sums);
    int64_t n = size("index", index_, 0);
    const int64_t* index = in<int64_t>("index", index_, {n});
    int64_t* points = out<int64_t>("points", points_, {n, t.dim});
    auto kernel = CODEWORD_PICK(pyramid_point);
    int workers = threads(num_threads);
    nb::gil_scoped_release release;
    parallel((n + ROWS - 1) / ROWS, workers, [&](int64_t chunk, int) {
        int64_t begin = chunk * ROWS, count = n - begin < ROWS ? n - begin : ROWS;
        kernel(index + begin, count, t, points + begin * t.dim);
    });
}

}  // namespace

void bind_pyramid(nb::module_& m) {
    m.def("pyramid_project", &pyramid_project, nb::arg("x"), nb::arg("pulses"), nb::arg("points"), nb::arg("gains"), nb::arg("num_threads"));
    m.def("pyramid_number", &pyramid_number, nb::arg("points"), nb::arg("counts"), nb::arg("sums"), nb::arg("index"), nb::arg("num_threads"));
    m.def("pyramid_point", &pyramid_point, nb::arg("index"), nb::arg("counts"), nb::arg("sums"), nb::arg("points"), nb::arg("num_threads"));
}

}  // namespace codeword
