// Binding of adjust_code.
#include <algorithm>
#include <memory>
#include <vector>

#include "adjust/adjust.h"
#include "arrays.h"
#include "bindings_search.h"
#include "isa.h"
#include "pool.h"

namespace codeword {
namespace {

void adjust_code(In rows_, In lengths_, In bits_, int64_t rounds, std::optional<In> steps_, Out codes_, Out sums_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("rows", rows_, 0), width = size("rows", rows_, 1), segments = size("lengths", lengths_, 0);
    AdjustTask task{};
    task.rows = in<float>("rows", rows_, {n, width});
    const int64_t* lengths = in<int64_t>("lengths", lengths_, {segments});
    task.bits = in<int64_t>("bits", bits_, {segments});
    task.steps = steps_ ? in<double>("steps", *steps_, {n, segments}) : nullptr;
    task.wide = codes_.dtype() == nb::dtype<uint16_t>();
    if (task.wide) task.codes = out<uint16_t>("codes", codes_, {n, width});
    else task.codes = out<uint8_t>("codes", codes_, {n, width});
    task.sums = out<double>("sums", sums_, {n, segments, 3});
    if (rounds < 0) refuse("adjust_code got " + std::to_string(rounds) + " rounds; 0 or more are allowed");
    std::vector<int64_t> starts(1);
    int64_t longest = 0;
    for (int64_t s = 0; s < segments; ++s) {
        if (lengths[s] < 1 || lengths[s] > width - starts.back()) refuse("adjust_code got a segment of " + std::to_string(lengths[s]) +
                                                                       " columns; at least 1 and no more than the rows have are allowed");
        int64_t most = task.wide ? 13 : 8;
        if (task.bits[s] < 1 || task.bits[s] > most)
            refuse("adjust_code got " + std::to_string(task.bits[s]) + " bits; 1.." + std::to_string(most) + " are allowed");
        starts.push_back(starts.back() + lengths[s]);
        longest = std::max(longest, lengths[s]);
    }
    if (starts.back() != width) refuse("adjust_code got segments of " + std::to_string(starts.back()) + " columns in all; " +
                                       std::to_string(width) + " are needed");
    task.starts = starts.data();
    task.width = width;
    task.segments = segments;
    task.rounds = rounds;
    int workers = threads(num_threads);
    int64_t floats = (CODEWORD_PICK(adjust_scratch)(longest) + 15) / 16 * 16;
    std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(product(floats, workers))]);
    auto kernel = CODEWORD_PICK(adjust);
    const int64_t chunk_rows = 64;
    nb::gil_scoped_release release;
    parallel((n + chunk_rows - 1) / chunk_rows, workers, [&](int64_t chunk, int slot) {
        kernel(task, chunk * chunk_rows, std::min(n, (chunk + 1) * chunk_rows), scratch.get() + floats * slot);
    });
}

}  // namespace

void bind_adjust(nb::module_& m) {
    m.def("adjust_code", &adjust_code, nb::arg("rows"), nb::arg("lengths"), nb::arg("bits"), nb::arg("rounds"), nb::arg("steps").none(),
          nb::arg("codes"), nb::arg("sums"), nb::arg("num_threads"));
}

}  // namespace codeword
