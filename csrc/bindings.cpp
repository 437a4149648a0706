// The module codeword._native: checks the arrays, cuts the work into chunks, releases the GIL, runs the kernel that suits this processor.
//
// Outputs are written into arrays the caller made. Chunks have a fixed number of rows, so results do not depend on the number of threads.
#include <cmath>

#include "arrays.h"
#include "bindings_search.h"
#include "hadamard/hadamard.h"
#include "isa.h"
#include "pool.h"

namespace codeword {
namespace {

int64_t chunks_of(int64_t items, int64_t size) { return (items + size - 1) / size; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows a chunk: enough that taking it costs nothing beside the work, a multiple of 8.
int64_t rows_for(int64_t work_per_row) {
    int64_t rows = (int64_t{1} << 16) / (work_per_row < 1 ? 1 : work_per_row);
    return rows < 8 ? 8 : rows & ~int64_t{7};
}

void hadamard(In x, Out out_, int64_t num_threads) {
    int64_t n = size("x", x, 0), width = size("x", x, 1);
    if (width < 1 || (width & (width - 1))) refuse("hadamard got width " + std::to_string(width) + "; a power of two is needed");
    const float* from = in<float>("x", x, {n, width});
    float* to = out<float>("out", out_, {n, width});
    int count = threads(num_threads);
    auto kernel = CODEWORD_PICK(hadamard);
    float scale = static_cast<float>(1 / std::sqrt(static_cast<double>(width)));
    int64_t rows = rows_for(8 * width);
    nb::gil_scoped_release release;
    parallel(chunks_of(n, rows), count, [&](int64_t chunk, int) { kernel(from, to, width, scale, chunk * rows, least(n, (chunk + 1) * rows)); });
}

}  // namespace
}  // namespace codeword

NB_MODULE(_native, m) {
    using namespace codeword;
    m.doc() = "Compiled kernels of codeword; call them through codeword.ops.";
    m.def("isa", [] { return isa_name(isa()); });
    m.def("set_isa", &set_isa, nb::arg("name"), "Force an instruction set for tests and benchmarks; '' for the best.");
    m.def("compiled_isas", [] { nb::list names; for (auto& name : compiled_isas()) names.append(name); return names; });
    m.def("runnable_isas", [] { nb::list names; for (auto& name : runnable_isas()) names.append(name); return names; });
    m.def("workers", &workers, "Threads the pool has started in this process.");

    bind_search(m);
    m.def("hadamard", &hadamard, nb::arg("x"), nb::arg("out"), nb::arg("num_threads"));
}
