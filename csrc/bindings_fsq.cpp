// Bindings of fsq_round and fsq_curve.
#include "bindings_fsq.h"

#include <cmath>
#include <memory>

#include "arrays.h"
#include "fsq/fsq.h"
#include "isa.h"
#include "pool.h"

namespace codeword {
namespace {

constexpr int64_t NUMBERS = 1 << 15;  // of a chunk: some ten microseconds

struct alignas(64) Line {
    float value[FSQ_TOKENS];
};

// Constants of a block: value(i) for dimension i, over and over.
template <class T, class Value>
T* tile(Line* lines, int64_t dims, Value&& value) {
    T* to = reinterpret_cast<T*>(lines);
    for (int64_t at = 0; at < FSQ_TOKENS * dims; ++at) to[at] = value(at % dims);
    return to;
}

int64_t dims_of(const In& z) {
    int64_t dims = size("z", z, 1);
    if (dims < 1 || dims > FSQ_DIMS) refuse("fsq got tokens of " + std::to_string(dims) + " dimensions; 1..32 are allowed");
    return dims;
}

// Whole blocks of tokens, so that a chunk's numbers are computed in the same lanes whatever the number of threads.
template <class Body>
void chunks(int64_t tokens, int64_t dims, int workers, Body&& body) {
    const int64_t each = FSQ_TOKENS * (NUMBERS / (FSQ_TOKENS * dims));
    parallel((tokens + each - 1) / each, workers, [&](int64_t chunk, int) {
        int64_t begin = chunk * each;
        body(begin, tokens - begin < each ? tokens - begin : each);
    });
}

void fsq_round(In z, In edges_, In shift_, In rise_, In steps_, In levels_, Out index_, Out values_, Out shifted_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    const int64_t n = size("z", z, 0), dims = dims_of(z), longest = size("edges", edges_, 1);
    const float* from = in<float>("z", z, {n, dims});
    const float *edges = in<float>("edges", edges_, {dims, longest}), *shift = in<float>("shift", shift_, {dims});
    const float *rise = in<float>("rise", rise_, {dims}), *steps = in<float>("steps", steps_, {dims});
    const int64_t* levels = in<int64_t>("levels", levels_, {dims});
    int64_t* index = out<int64_t>("index", index_, {n});
    float *values = out<float>("values", values_, {n, dims}), *shifted = out<float>("shifted", shifted_, {n, dims});
    uint32_t radix[FSQ_DIMS];
    int64_t whole = 1;
    for (int64_t i = 0; i < dims; ++i) {
        if (levels[i] < 2 || levels[i] > 256 || levels[i] - 1 > longest) refuse("fsq got " + std::to_string(levels[i]) + " levels and " + std::to_string(longest) + " edges; 2..256 levels and an edge less are allowed");
        radix[i] = static_cast<uint32_t>(whole);
        whole *= levels[i];
        if (whole > (int64_t{1} << 32)) refuse("fsq got more than 2^32 codes for a token");
    }
    int64_t count = 0;
    for (int64_t i = 0; i < dims; ++i) count = count < levels[i] - 1 ? levels[i] - 1 : count;
    std::unique_ptr<Line[]> memory(new Line[static_cast<size_t>((4 + count) * dims)]);
    Line* lines = memory.get();
    FsqTables t{};
    t.dims = dims;
    t.edge_count = count;
    t.shift = tile<float>(lines, dims, [&](int64_t i) { return shift[i]; });
    t.steps = tile<float>(lines + dims, dims, [&](int64_t i) { return steps[i]; });
    t.rise = tile<float>(lines + 2 * dims, dims, [&](int64_t i) { return rise[i]; });
    t.radix = tile<uint32_t>(lines + 3 * dims, dims, [&](int64_t i) { return radix[i]; });
    t.edges = reinterpret_cast<float*>(lines + 4 * dims);
    for (int64_t e = 0; e < count; ++e)  // beyond a dimension's own edges: NaN, which nothing passes
        tile<float>(lines + (4 + e) * dims, dims, [&](int64_t i) { return e < levels[i] - 1 ? edges[i * longest + e] : NAN; });
    auto kernel = CODEWORD_PICK(fsq_round);
    int workers = threads(num_threads);
    nb::gil_scoped_release release;
    chunks(n, dims, workers, [&](int64_t begin, int64_t rows) {
        kernel(from + begin * dims, rows, t, index + begin, values + begin * dims, shifted + begin * dims);
    });
}

void fsq_curve(In curve_, In values_, In scale_, In base_, Out slope_, Out gap_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    const int64_t n = size("curve", curve_, 0), dims = dims_of(curve_);
    const float *curve = in<float>("curve", curve_, {n, dims}), *values = in<float>("values", values_, {n, dims});
    const float *scales = in<float>("scale", scale_, {dims}), *bases = in<float>("base", base_, {dims});
    float *slope = out<float>("slope", slope_, {n, dims}), *gap = out<float>("gap", gap_, {n});
    std::unique_ptr<Line[]> memory(new Line[static_cast<size_t>(2 * dims)]);
    const float* scale = tile<float>(memory.get(), dims, [&](int64_t i) { return scales[i]; });
    const float* base = tile<float>(memory.get() + dims, dims, [&](int64_t i) { return bases[i]; });
    auto kernel = CODEWORD_PICK(fsq_curve);
    int workers = threads(num_threads);
    nb::gil_scoped_release release;
    chunks(n, dims, workers, [&](int64_t begin, int64_t rows) {
        kernel(curve + begin * dims, values + begin * dims, rows, dims, scale, base, slope + begin * dims, gap + begin);
    });
}

}  // namespace

void bind_fsq(nb::module_& m) {
    m.def("fsq_round", &fsq_round, nb::arg("z"), nb::arg("edges"), nb::arg("shift"), nb::arg("rise"), nb::arg("steps"), nb::arg("levels"),
          nb::arg("index"), nb::arg("values"), nb::arg("shifted"), nb::arg("num_threads"));
    m.def("fsq_curve", &fsq_curve, nb::arg("curve"), nb::arg("values"), nb::arg("scale"), nb::arg("base"), nb::arg("slope"), nb::arg("gap"),
          nb::arg("num_threads"));
}

}  // namespace codeword
