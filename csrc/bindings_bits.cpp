// Bindings of bit_scan, its queries, and segment_scan.
#include <algorithm>
#include <memory>

#include "arrays.h"
#include "bindings_search.h"
#include "pool.h"
#include "runs.h"
#include "spans.h"

namespace codeword {
namespace {

constexpr double ROW_BYTES = 200;  // of codes, which take as long as making a dimension of a query ready

void bit_scan(In planes, In factors, In centers, In rest, In rest_factors, int64_t bits, In z1, In z, In scalars, bool l2, In spans, In coarse,
              std::optional<In> allowed, Out distances, Out rows_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
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
    check_width("bit_scan", 8 * eights);
    check_spans("bit_scan", ranges, queries * probes, rows);
    const Visit visit{ranges, offsets, queries, probes, k, threads(num_threads), out_distances, out_rows};
    nb::gil_scoped_release release;
    run_bit_scan(blocks, {table_values, values, numbers, l2}, visit);
}

// Queries (q, n) made ready for bit_scan: see bit_blocks.prepare_reference. A row at a time, so that it is the same in any batch.
void bit_query(In queries_, In center_, In signs_, int64_t bits, double slack, bool l2, Out z1_, Out z_, Out scalars_, Out norms_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    if (bits < 1 || bits > 9) refuse("bit_query got " + std::to_string(bits) + " bits; 1..9 are allowed");
    const int64_t count = size("queries", queries_, 0), n = size("queries", queries_, 1);
    if (n < 1) refuse("bit_query got width 0; at least 1 is needed");
    const int64_t eights = (n + 7) / 8 * 8, width = bits > 1 ? (n + 31) / 32 * 32 : 0;
    const float* queries = in<float>("queries", queries_, {count, n});
    const float* center = in<float>("center", center_, {n});
    const float* signs = in<float>("signs", signs_, {4, n});
    int8_t* z1 = out<int8_t>("z1", z1_, {count, eights});
    int16_t* z = out<int16_t>("z", z_, {count, width});
    float* scalars = out<float>("scalars", scalars_, {count, 4});
    float* norms = out<float>("norms", norms_, {count});
    const BitPreparation ready{center, signs, n, static_cast<int>(bits), slack, l2};
    const int64_t chunk = 16;
    const int workers = paying_threads(threads(num_threads), static_cast<double>(count * n) * ROW_BYTES);
    std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(product(2 * n, workers))]);
    nb::gil_scoped_release release;
    parallel((count + chunk - 1) / chunk, workers, [&](int64_t part, int slot) {
        for (int64_t q = part * chunk; q < count && q < (part + 1) * chunk; ++q) {
            norms[q] = square_norm(queries + q * n, n);
            ready.row(queries + q * n, norms[q], scratch.get() + 2 * n * slot, z1 + q * eights, z + q * width, scalars + 4 * q);
        }
    });
}

// What queries multiply segments with, made ready for segment_scan: see segment_blocks.prepare_reference.
void segment_query(In z_, In centred_, In towards_, In plan_, In constants_, bool l2, Out z1_, Out wide_, Out scalars_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    SegmentPart parts[SEGMENTS];
    SegmentBlocks blocks{};
    const int64_t segments = size("plan", plan_, 0);
    const int64_t* plan = in<int64_t>("plan", plan_, {segments, 2});
    const int64_t groups = read_plan("segment_query", plan, segments, parts, blocks);
    int64_t coded = 0;
    for (int64_t s = 0; s < segments; ++s) coded += plan[2 * s];
    const int64_t count = size("z", z_, 0), dim = size("centred", centred_, 1), eights = 8 * blocks.eights;
    const float* z = in<float>("z", z_, {count, coded});
    const float* centred = in<float>("centred", centred_, {count, dim});
    const float* towards = in<float>("towards", towards_, {count});
    const double* constants = in<double>("constants", constants_, {3, segments});
    int8_t* z1 = out<int8_t>("z1", z1_, {count, eights});
    int16_t* wide = out<int16_t>("wide", wide_, {count, 32 * groups});
    float* scalars = out<float>("scalars", scalars_, {count, 1 + 4 * segments});
    const SegmentPreparation ready{plan, constants, groups, l2};
    const int64_t chunk = 16;
    const int workers = paying_threads(threads(num_threads), static_cast<double>(count * coded) * ROW_BYTES);
    nb::gil_scoped_release release;
    parallel((count + chunk - 1) / chunk, workers, [&](int64_t part, int) {
        for (int64_t q = part * chunk; q < count && q < (part + 1) * chunk; ++q)
            ready.row(blocks, z + q * coded, centred + q * dim, dim, towards[q], z1 + q * eights, wide + q * 32 * groups,
                      scalars + q * (1 + 4 * segments));
    });
}

void segment_scan(In planes, In factors, In centers, In rest, In rest_factors, In plan_, In z1, In z, In scalars, bool l2, In spans, In coarse,
                  std::optional<In> allowed, Out distances, Out rows_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    const int64_t block = 32;
    SegmentPart parts[SEGMENTS];
    SegmentBlocks blocks{};
    const int64_t segments = size("plan", plan_, 0);
    const int64_t groups = read_plan("segment_scan", in<int64_t>("plan", plan_, {segments, 2}), segments, parts, blocks);
    const int64_t count = size("planes", planes, 0), rows = product(count, block);
    const int64_t queries = size("z1", z1, 0), probes = size("spans", spans, 1), k = size("distances", distances, 1);
    blocks.planes = in<uint8_t>("planes", planes, {count, blocks.eights, block});
    blocks.factors = in<float>("factors", factors, {count, 1 + 2 * segments, block});
    blocks.centers = in<float>("centers", centers, {count});
    blocks.rest = in<uint8_t>("rest", rest, {rows, blocks.width});
    blocks.rest_factors = in<float>("rest_factors", rest_factors, {rows, 2 * blocks.refined});
    blocks.allowed = allowed ? in<uint8_t>("allowed", *allowed, {rows}) : nullptr;
    const int8_t* table_values = in<int8_t>("z1", z1, {queries, 8 * blocks.eights});
    const int16_t* values = in<int16_t>("z", z, {queries, 32 * groups});
    const float* numbers = in<float>("scalars", scalars, {queries, 1 + 4 * segments});
    const int64_t* ranges = in<int64_t>("spans", spans, {queries, probes, 2});
    const float* offsets = in<float>("coarse", coarse, {queries, probes});
    float* out_distances = out<float>("distances", distances, {queries, k});
    int64_t* out_rows = out<int64_t>("rows", rows_, {queries, k});
    if (k < 1) refuse("segment_scan got k=0; at least 1 is needed");
    check_width("segment_scan", 8 * blocks.eights);
    check_spans("segment_scan", ranges, queries * probes, rows);
    const Visit visit{ranges, offsets, queries, probes, k, threads(num_threads), out_distances, out_rows};
    nb::gil_scoped_release release;
    run_segment_scan(blocks, {table_values, values, numbers, groups, l2}, visit);
}

}  // namespace

void bind_bits(nb::module_& m) {
    m.def("bit_scan", &bit_scan, nb::arg("planes"), nb::arg("factors"), nb::arg("centers"), nb::arg("rest"), nb::arg("rest_factors"), nb::arg("bits"),
          nb::arg("z1"), nb::arg("z"), nb::arg("scalars"), nb::arg("l2"), nb::arg("spans"), nb::arg("coarse"), nb::arg("allowed").none(),
          nb::arg("distances"), nb::arg("rows"), nb::arg("num_threads"));
    m.def("bit_query", &bit_query, nb::arg("queries"), nb::arg("center"), nb::arg("signs"), nb::arg("bits"), nb::arg("slack"), nb::arg("l2"),
          nb::arg("z1"), nb::arg("z"), nb::arg("scalars"), nb::arg("norms"), nb::arg("num_threads"));
    m.def("segment_query", &segment_query, nb::arg("z"), nb::arg("centred"), nb::arg("towards"), nb::arg("plan"), nb::arg("constants"), nb::arg("l2"),
          nb::arg("z1"), nb::arg("wide"), nb::arg("scalars"), nb::arg("num_threads"));
    m.def("segment_scan", &segment_scan, nb::arg("planes"), nb::arg("factors"), nb::arg("centers"), nb::arg("rest"), nb::arg("rest_factors"),
          nb::arg("plan"), nb::arg("z1"), nb::arg("z"), nb::arg("scalars"), nb::arg("l2"), nb::arg("spans"), nb::arg("coarse"),
          nb::arg("allowed").none(), nb::arg("distances"), nb::arg("rows"), nb::arg("num_threads"));
}

}  // namespace codeword
