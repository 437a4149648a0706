// Bindings of lut_scan, lut_tables, grid_code and additive_search.
#include "bindings_search.h"

#include <algorithm>
#include <memory>

#include "additive_search/additive_search.h"
#include "adjust/adjust.h"
#include "arrays.h"
#include "grid_code/grid_code.h"
#include "isa.h"
#include "lut_scan/lut_scan.h"
#include "lut_tables/lut_tables.h"
#include "pool.h"
#include "runs.h"
#include "spans.h"

namespace codeword {
namespace {

void grid_code(In magnitudes, int64_t cells, Out out_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("magnitudes", magnitudes, 0), dim = size("magnitudes", magnitudes, 1);
    if (cells < 2 || cells > 256) refuse("grid_code got " + std::to_string(cells) + " cells; 2..256 are allowed");
    if (dim > (int64_t{1} << 24)) refuse("grid_code got " + std::to_string(dim) + " dimensions; at most 2^24 are allowed");
    const int32_t* from = in<int32_t>("magnitudes", magnitudes, {n, dim});
    uint8_t* to = out<uint8_t>("out", out_, {n, dim});
    for (int64_t i = 0; i < n * dim; ++i)
        if (from[i] < 0 || from[i] > (1 << 30)) refuse("grid_code got the magnitude " + std::to_string(from[i]) + "; 0..2^30 are allowed");
    int workers = threads(num_threads);
    size_t bytes = (grid_code_scratch(static_cast<size_t>(dim)) + 127) / 64 * 64;
    std::unique_ptr<double[]> scratch(new double[bytes / 8 * static_cast<size_t>(workers)]);
    auto kernel = CODEWORD_PICK(grid_code);
    auto score = CODEWORD_PICK(grid_score);
    auto adjust = CODEWORD_PICK(adjust);
    // A good code first, where there is a kernel for it: the better it is, the less the exact search must visit.
    const int half = static_cast<int>(cells);
    const int64_t bits = (cells & (cells - 1)) == 0 && dim > 0 ? __builtin_ctzll(static_cast<uint64_t>(cells)) + 1 : 0, rows = 32, starts[2] = {0, dim};
    const int64_t floats = (CODEWORD_PICK(adjust_scratch)(dim) + 15) / 16 * 16;
    const size_t tiles = bits ? static_cast<size_t>(product(rows * dim, workers)) : 0;
    std::unique_ptr<float[]> values(new float[tiles]), spare(new float[bits ? static_cast<size_t>(product(floats, workers)) : 0]);
    std::unique_ptr<uint16_t[]> codes(new uint16_t[tiles]);
    nb::gil_scoped_release release;
    parallel((n + rows - 1) / rows, workers, [&](int64_t chunk, int slot) {
        const int64_t first = chunk * rows, count = std::min(rows, n - first);
        float* tile = values.get() + slot * rows * dim;
        uint16_t* good = codes.get() + slot * rows * dim;
        double sums[32 * 3];
        if (bits) {
            for (int64_t i = 0; i < count * dim; ++i) tile[i] = static_cast<float>(from[first * dim + i]);
            AdjustTask task{};
            task.rows = tile;
            task.codes = good;
            task.sums = sums;
            task.starts = starts;
            task.bits = &bits;
            task.width = dim;
            task.segments = 1;
            task.rounds = 6;
            task.wide = true;
            adjust(task, 0, count, spare.get() + floats * slot);
        }
        for (int64_t i = 0; i < count; ++i) {
            const int32_t* row = from + (first + i) * dim;
            const double start = bits ? score(row, dim, half, good + i * dim) : 0;
            kernel(row, dim, half, start, to + (first + i) * dim, scratch.get() + bytes / 8 * static_cast<size_t>(slot));
        }
    });
}

void lut_scan(In codes, int64_t width, std::optional<In> terms, In tables, In spans, In coarse, std::optional<In> allowed, Out distances, Out rows_,
              int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    if (width != 4 && width != 8 && width != 16) refuse("lut_scan got codes of " + std::to_string(width) + " bits; 4, 8 or 16 are allowed");
    const int64_t count = size("codes", codes, 0), queries = size("tables", tables, 0), books = size("tables", tables, 1),
                  entries = size("tables", tables, 2), probes = size("spans", spans, 1), k = size("distances", distances, 1);
    const int64_t rows = product(count, LUT_BLOCK);
    if (books < 1 || entries < 1 || entries > int64_t{1} << width)
        refuse("lut_scan got " + std::to_string(books) + " tables of " + std::to_string(entries) + " entries; at least one of 1..2^" +
               std::to_string(width) + " is needed");
    if (k < 1) refuse("lut_scan got k=0; at least 1 is needed");
    LutBlocks blocks{};
    blocks.codes = width == 4    ? static_cast<const void*>(in<uint8_t>("codes", codes, {count, (books + 3) / 4, 64}))
                   : width == 8  ? static_cast<const void*>(in<uint8_t>("codes", codes, {count, books, LUT_BLOCK}))
                                 : static_cast<const void*>(in<uint16_t>("codes", codes, {count, books, LUT_BLOCK}));
    blocks.terms = terms ? in<float>("terms", *terms, {rows}) : nullptr;
    blocks.allowed = allowed ? in<uint8_t>("allowed", *allowed, {rows}) : nullptr;
    blocks.books = books;
    blocks.size = entries;
    blocks.width = static_cast<int>(width);
    const float* values = in<float>("tables", tables, {queries, books, entries});
    const int64_t* ranges = in<int64_t>("spans", spans, {queries, probes, 2});
    const float* offsets = in<float>("coarse", coarse, {queries, probes});
    float* out_distances = out<float>("distances", distances, {queries, k});
    int64_t* out_rows = out<int64_t>("rows", rows_, {queries, k});
    check_spans("lut_scan", ranges, queries * probes, rows);

    const Visit visit{ranges, offsets, queries, probes, k, threads(num_threads), out_distances, out_rows};
    nb::gil_scoped_release release;
    run_lut_scan(blocks, values, visit);
}

void additive_search(In terms, In gram, Out codes_, Out costs_, int64_t states, int64_t assigned, int64_t sweeps, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    AdditiveSearch s{};
    int64_t n = size("terms", terms, 0);
    s.positions = size("terms", terms, 1);
    s.width = size("terms", terms, 2);
    s.codebooks = size("gram", gram, 1);
    s.size = size("gram", gram, 2);
    s.beam = size("costs", costs_, 1);
    s.states = states;
    s.assigned = assigned;
    s.sweeps = sweeps;
    if (s.width % 16 || s.size < 1 || s.size > s.width)
        refuse("additive_search got a width of " + std::to_string(s.width) + " for " + std::to_string(s.size) + " codewords; a multiple of 16 that holds them is needed");
    if (s.positions < 1 || s.codebooks < s.positions || s.codebooks > ADDITIVE_MOST)
        refuse("additive_search got " + std::to_string(s.positions) + " of " + std::to_string(s.codebooks) + " positions; 1 up to all of at most 64 are allowed");
    if (assigned != s.codebooks - s.positions && assigned != s.codebooks)
        refuse("additive_search got " + std::to_string(assigned) + " assigned positions; all, or all before those searched, are needed");
    if (sweeps < 1 || s.beam < 1 || states < 1 || states > s.beam)
        refuse("additive_search got " + std::to_string(sweeps) + " sweeps, beam " + std::to_string(s.beam) + " and " + std::to_string(states) + " states; at least 1 of each, and no more states than the beam, are needed");
    s.terms = in<float>("terms", terms, {n, s.positions, s.width});
    s.gram = in<float>("gram", gram, {s.positions, s.codebooks, s.size, s.width});
    int32_t* codes = out<int32_t>("codes", codes_, {n, s.beam, s.codebooks});
    double* costs = out<double>("costs", costs_, {n, s.beam});
    for (int64_t r = 0; r < n; ++r)
        for (int64_t i = 0; i < states * s.codebooks; ++i) {
            int32_t code = codes[r * s.beam * s.codebooks + i];
            if (code < 0 || code >= s.size)
                refuse("additive_search got the code " + std::to_string(code) + "; 0.." + std::to_string(s.size - 1) + " are allowed");
        }
    int workers = threads(num_threads);
    auto kernel = CODEWORD_PICK(additive_search);
    int64_t bytes = (CODEWORD_PICK(additive_scratch)(s) + 63) & ~int64_t{63};
    std::unique_ptr<double[]> scratch(new double[static_cast<size_t>(product(bytes / 8, workers)) + 8]);
    char* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch.get()) + 63) & ~uintptr_t{63});
    nb::gil_scoped_release release;
    parallel((n + ADDITIVE_ROWS - 1) / ADDITIVE_ROWS, workers, [&](int64_t chunk, int slot) {
        int64_t stop = (chunk + 1) * ADDITIVE_ROWS;
        kernel(s, codes, costs, aligned + bytes * slot, chunk * ADDITIVE_ROWS, stop < n ? stop : n);
    });
}

void lut_tables(In queries, In codebooks, double factor, std::optional<In> first, Out out_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    const int64_t count = size("queries", queries, 0), books = size("codebooks", codebooks, 0), dim = size("codebooks", codebooks, 1),
                  entries = size("codebooks", codebooks, 2);
    const float* from = in<float>("queries", queries, {count, books, dim});
    const float* words = in<float>("codebooks", codebooks, {books, dim, entries});
    const double* start = first ? in<double>("first", *first, {books, entries}) : nullptr;
    float* to = out<float>("out", out_, {count, books, entries});
    if (factor != -1 && factor != -2) refuse("lut_tables got the factor " + std::to_string(factor) + "; -1 and -2 are allowed");
    auto kernel = CODEWORD_PICK(lut_tables);
    // A multiply-add takes about as long as two bytes of codes.
    const int workers = paying_threads(threads(num_threads), static_cast<double>(count * books * dim) * static_cast<double>(entries) * 2);
    nb::gil_scoped_release release;
    parallel(books, workers, [&](int64_t m, int) {
        kernel(from + m * dim, count, books * dim, words + m * entries * dim, entries, dim, factor, start ? start + m * entries : nullptr,
               to + m * entries, books * entries);
    });
}

}  // namespace

void bind_search(nb::module_& m) {
    m.def("additive_search", &additive_search, nb::arg("terms"), nb::arg("gram"), nb::arg("codes"), nb::arg("costs"), nb::arg("states"),
          nb::arg("assigned"), nb::arg("sweeps"), nb::arg("num_threads"), "Codes and costs hold the start and receive the answer.");
    m.def("lut_scan", &lut_scan, nb::arg("codes"), nb::arg("width"), nb::arg("terms").none(), nb::arg("tables"), nb::arg("spans"), nb::arg("coarse"),
          nb::arg("allowed").none(), nb::arg("distances"), nb::arg("rows"), nb::arg("num_threads"));
    m.def("lut_tables", &lut_tables, nb::arg("queries"), nb::arg("codebooks"), nb::arg("factor"), nb::arg("first").none(), nb::arg("out"),
          nb::arg("num_threads"));
    m.def("grid_code", &grid_code, nb::arg("magnitudes"), nb::arg("cells"), nb::arg("out"), nb::arg("num_threads"));
}

}  // namespace codeword
