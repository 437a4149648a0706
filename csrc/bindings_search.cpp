// Bindings of bit_scan, grid_code and adjust_code.
#include "bindings_search.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "adjust/adjust.h"
#include "arrays.h"
#include "bit_scan/bit_scan.h"
#include "grid_code/grid_code.h"
#include "isa.h"
#include "pool.h"

namespace codeword {
namespace {

void bit_scan(In planes, In factors, In centers, In rest, In rest_factors, int64_t bits, In z1, In z, In scalars, bool l2, In spans, In coarse,
              std::optional<In> allowed, Out distances, Out rows_, int64_t num_threads) {
    const int64_t block = 32;
    if (bits < 1 || bits > 9) refuse("bit_scan got " + std::to_string(bits) + " bits; 1..9 are allowed");
    int64_t count = size("planes", planes, 0), eights = size("planes", planes, 1), rows = product(count, block);
    int64_t groups = (eights + 3) / 4, width = bits > 1 ? product(4 * (bits - 1), groups) : 0;
    int64_t queries = size("z1", z1, 0), probes = size("spans", spans, 1), k = size("distances", distances, 1);
    BitBlocks blocks{};
    blocks.planes = in<uint8_t>("planes", planes, {count, eights, block});
    blocks.factors = in<float>("factors", factors, {count, 3, block});
    blocks.centers = in<float>("centers", centers, {count});
    blocks.rest = in<uint8_t>("rest", rest, {rows, width});
    blocks.rest_factors = in<float>("rest_factors", rest_factors, {rows, bits > 1 ? 3 : 0});
    blocks.allowed = allowed ? in<uint8_t>("allowed", *allowed, {rows}) : nullptr;
    blocks.eights = eights;
    blocks.groups = groups;
    blocks.width = width;
    blocks.bits = static_cast<int>(bits);
    const int8_t* table_values = in<int8_t>("z1", z1, {queries, 8 * eights});
    const int16_t* values = in<int16_t>("z", z, {queries, bits > 1 ? 32 * groups : 0});
    const float* numbers = in<float>("scalars", scalars, {queries, 4});
    const int64_t* ranges = in<int64_t>("spans", spans, {queries, probes, 2});
    const float* offsets = in<float>("coarse", coarse, {queries, probes});
    float* out_distances = out<float>("distances", distances, {queries, k});
    int64_t* out_rows = out<int64_t>("rows", rows_, {queries, k});
    if (k < 1) refuse("bit_scan got k=0; at least 1 is needed");
    for (int64_t i = 0; i < queries * probes; ++i) {
        int64_t start = ranges[2 * i], stop = ranges[2 * i + 1];
        if (start < stop && (start < 0 || stop > rows || start % block))
            refuse("bit_scan got the span " + std::to_string(start) + ".." + std::to_string(stop) + "; 0.." + std::to_string(rows) +
                   " from a multiple of 32 is allowed");
    }
    int workers = threads(num_threads);
    if (workers > queries) workers = queries > 0 ? static_cast<int>(queries) : 1;
    int64_t scratch_bytes = (32 * eights + 4 * groups + 127) / 64 * 64;
    std::vector<uint8_t> scratch(static_cast<size_t>(product(scratch_bytes, workers)));
    auto kernel = CODEWORD_PICK(bit_scan);
    nb::gil_scoped_release release;
    parallel(queries, workers, [&](int64_t q, int slot) {
        const float* s = numbers + 4 * q;
        BitQuery query{table_values + 8 * eights * q, bits > 1 ? values + 32 * groups * q : nullptr, s[0], s[1], s[2], s[3], l2};
        kernel(blocks, query, ranges + 2 * probes * q, offsets + probes * q, probes, k, scratch.data() + scratch_bytes * slot, out_distances + k * q,
               out_rows + k * q);
    });
}

void grid_code(In magnitudes, int64_t cells, Out out_, int64_t num_threads) {
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
    const int64_t rows = 4;
    nb::gil_scoped_release release;
    parallel((n + rows - 1) / rows, workers, [&](int64_t chunk, int slot) {
        for (int64_t i = chunk * rows; i < n && i < (chunk + 1) * rows; ++i)
            kernel(from + i * dim, dim, static_cast<int>(cells), to + i * dim, scratch.get() + bytes / 8 * static_cast<size_t>(slot));
    });
}

void adjust_code(In rows_, In lengths_, In bits_, int64_t rounds, std::optional<In> steps_, Out codes_, Out sums_, int64_t num_threads) {
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

void bind_search(nb::module_& m) {
    m.def("bit_scan", &bit_scan, nb::arg("planes"), nb::arg("factors"), nb::arg("centers"), nb::arg("rest"), nb::arg("rest_factors"), nb::arg("bits"),
          nb::arg("z1"), nb::arg("z"), nb::arg("scalars"), nb::arg("l2"), nb::arg("spans"), nb::arg("coarse"), nb::arg("allowed").none(),
          nb::arg("distances"), nb::arg("rows"), nb::arg("num_threads"));
    m.def("adjust_code", &adjust_code, nb::arg("rows"), nb::arg("lengths"), nb::arg("bits"), nb::arg("rounds"), nb::arg("steps").none(),
          nb::arg("codes"), nb::arg("sums"), nb::arg("num_threads"));
    m.def("grid_code", &grid_code, nb::arg("magnitudes"), nb::arg("cells"), nb::arg("out"), nb::arg("num_threads"));
}

}  // namespace codeword
