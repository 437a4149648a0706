// Bindings of bit_scan, grid_code, lut_scan and lut_tables.
#include "bindings_search.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "arrays.h"
#include "bit_scan/bit_scan.h"
#include "grid_code/grid_code.h"
#include "isa.h"
#include "lut_scan/lut_scan.h"
#include "lut_tables/lut_tables.h"
#include "pool.h"

namespace codeword {
namespace {

// Spans must lie in 0..rows and start at multiples of 32.
void check_spans(const char* op, const int64_t* ranges, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; ++i) {
        int64_t start = ranges[2 * i], stop = ranges[2 * i + 1];
        if (start < stop && (start < 0 || stop > rows || start % 32))
            refuse(std::string(op) + " got the span " + std::to_string(start) + ".." + std::to_string(stop) + "; 0.." + std::to_string(rows) +
                   " from a multiple of 32 is allowed");
    }
}

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
    check_spans("bit_scan", ranges, queries * probes, rows);
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

// Part p of parts of all blocks that the spans visit: body(index of the span, start, stop).
template <class Body>
void part_of_spans(const int64_t* spans, int64_t probes, int64_t part, int64_t parts, Body&& body) {
    auto blocks_of = [&](int64_t i) { return spans[2 * i] < spans[2 * i + 1] ? (spans[2 * i + 1] - spans[2 * i] + LUT_BLOCK - 1) / LUT_BLOCK : 0; };
    int64_t total = 0;
    for (int64_t i = 0; i < probes; ++i) total += blocks_of(i);
    const int64_t share = total / parts, rest = total % parts;
    const int64_t first = part * share + std::min(part, rest), last = (part + 1) * share + std::min(part + 1, rest);
    for (int64_t i = 0, at = 0; i < probes && at < last; ++i) {
        const int64_t count = blocks_of(i), from = std::max<int64_t>(0, first - at), to = std::min(count, last - at);
        if (from < to) body(i, spans[2 * i] + from * LUT_BLOCK, std::min(spans[2 * i + 1], spans[2 * i] + to * LUT_BLOCK));
        at += count;
    }
}

// Queries one after another that visit the same spans: how many of the first `most`.
int64_t alike(const int64_t* spans, int64_t probes, int64_t queries, int64_t most) {
    int64_t n = 1;
    while (n < queries && n < most && !std::memcmp(spans, spans + 2 * probes * n, sizeof(int64_t) * 2 * static_cast<size_t>(probes))) ++n;
    return n;
}

void lut_scan(In codes, int64_t width, std::optional<In> terms, In tables, In spans, In coarse, std::optional<In> allowed, Out distances, Out rows_,
              int64_t num_threads) {
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

    // Queries that visit the same rows go together; where there are fewer groups than threads, each group's rows are split.
    const int64_t workers = threads(num_threads), most = std::min<int64_t>(LUT_QUERIES, std::max<int64_t>(1, queries / workers));
    std::vector<int64_t> firsts;
    for (int64_t q = 0; q < queries; q += alike(ranges + 2 * probes * q, probes, queries - q, most)) firsts.push_back(q);
    const int64_t groups = static_cast<int64_t>(firsts.size()), parts = groups && groups < workers ? (workers + groups - 1) / groups : 1;
    firsts.push_back(queries);
    const size_t bytes = lut_bytes(books, entries, blocks.width);
    const int64_t slots = std::min(workers, std::max<int64_t>(1, groups * parts));
    const int64_t at_once = std::min<int64_t>(LUT_QUERIES, std::max<int64_t>(1, queries)), rooms = product(slots, at_once);
    std::unique_ptr<uint8_t[]> rounded(new uint8_t[static_cast<size_t>(product(rooms, static_cast<int64_t>(bytes)))]);
    std::unique_ptr<float[]> highs(new float[static_cast<size_t>(product(rooms, k))]);
    std::unique_ptr<LutCandidate[]> candidates(new LutCandidate[static_cast<size_t>(product(rooms, LUT_WAITING + k))]);
    const int64_t spare = parts > 1 ? product(product(queries, parts), k) : 0;  // what each part found
    std::vector<float> part_distances(static_cast<size_t>(spare));
    std::vector<int64_t> part_rows(static_cast<size_t>(spare));
    std::vector<int64_t> part_counts(static_cast<size_t>(parts > 1 ? queries * parts : 0));
    auto start = CODEWORD_PICK(lut_start);
    auto span = CODEWORD_PICK(lut_span);
    auto settle = CODEWORD_PICK(lut_settle);
    auto merge = CODEWORD_PICK(lut_merge);
    auto finish = CODEWORD_PICK(lut_finish);
    nb::gil_scoped_release release;
    parallel(groups * parts, static_cast<int>(slots), [&](int64_t chunk, int slot) {
        const int64_t group = chunk / parts, part = chunk % parts, first = firsts[group];
        const int num = static_cast<int>(firsts[group + 1] - first);
        LutQuery some[LUT_QUERIES];
        for (int i = 0; i < num; ++i) {
            const int64_t q = first + i, place = parts > 1 ? (q * parts + part) * k : q * k, room = slot * at_once + i;
            some[i] = {};
            some[i].tables = values + q * books * entries;
            some[i].bytes = rounded.get() + room * static_cast<int64_t>(bytes);
            some[i].highs = highs.get() + room * k;
            some[i].candidates = candidates.get() + room * (LUT_WAITING + k);
            some[i].distances = (parts > 1 ? part_distances.data() : out_distances) + place;
            some[i].rows = (parts > 1 ? part_rows.data() : out_rows) + place;
            some[i].k = k;
            start(blocks, some[i]);
        }
        part_of_spans(ranges + 2 * probes * first, probes, part, parts, [&](int64_t p, int64_t from, int64_t to) {
            float base[LUT_QUERIES];
            for (int i = 0; i < num; ++i) base[i] = offsets[(first + i) * probes + p];
            span(blocks, some, num, from, to, base);
        });
        for (int i = 0; i < num; ++i) {
            settle(blocks, some[i]);
            if (parts > 1) part_counts[(first + i) * parts + part] = some[i].count;
            else finish(some[i]);
        }
    });
    for (int64_t q = 0; q < queries && parts > 1; ++q) {
        LutQuery all{};
        all.distances = out_distances + q * k;
        all.rows = out_rows + q * k;
        all.k = k;
        for (int64_t part = 0; part < parts; ++part) {
            LutQuery one{};
            one.distances = part_distances.data() + (q * parts + part) * k;
            one.rows = part_rows.data() + (q * parts + part) * k;
            one.count = part_counts[q * parts + part];
            merge(all, one);
        }
        finish(all);
    }
}

void lut_tables(In queries, In codebooks, double factor, std::optional<In> first, Out out_, int64_t num_threads) {
    const int64_t count = size("queries", queries, 0), books = size("codebooks", codebooks, 0), dim = size("codebooks", codebooks, 1),
                  entries = size("codebooks", codebooks, 2);
    const float* from = in<float>("queries", queries, {count, books, dim});
    const float* words = in<float>("codebooks", codebooks, {books, dim, entries});
    const double* start = first ? in<double>("first", *first, {books, entries}) : nullptr;
    float* to = out<float>("out", out_, {count, books, entries});
    if (factor != -1 && factor != -2) refuse("lut_tables got the factor " + std::to_string(factor) + "; -1 and -2 are allowed");
    auto kernel = CODEWORD_PICK(lut_tables);
    const int workers = threads(num_threads);
    nb::gil_scoped_release release;
    parallel(books, workers, [&](int64_t m, int) {
        kernel(from + m * dim, count, books * dim, words + m * entries * dim, entries, dim, factor, start ? start + m * entries : nullptr,
               to + m * entries, books * entries);
    });
}

}  // namespace

void bind_search(nb::module_& m) {
    m.def("bit_scan", &bit_scan, nb::arg("planes"), nb::arg("factors"), nb::arg("centers"), nb::arg("rest"), nb::arg("rest_factors"), nb::arg("bits"),
          nb::arg("z1"), nb::arg("z"), nb::arg("scalars"), nb::arg("l2"), nb::arg("spans"), nb::arg("coarse"), nb::arg("allowed").none(),
          nb::arg("distances"), nb::arg("rows"), nb::arg("num_threads"));
    m.def("lut_scan", &lut_scan, nb::arg("codes"), nb::arg("width"), nb::arg("terms").none(), nb::arg("tables"), nb::arg("spans"), nb::arg("coarse"),
          nb::arg("allowed").none(), nb::arg("distances"), nb::arg("rows"), nb::arg("num_threads"));
    m.def("lut_tables", &lut_tables, nb::arg("queries"), nb::arg("codebooks"), nb::arg("factor"), nb::arg("first").none(), nb::arg("out"),
          nb::arg("num_threads"));
    m.def("grid_code", &grid_code, nb::arg("magnitudes"), nb::arg("cells"), nb::arg("out"), nb::arg("num_threads"));
}

}  // namespace codeword
