// Bindings of bit_scan, its queries, and segment_scan.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "arrays.h"
#include "bindings_search.h"
#include "bit_scan/bit_scan.h"
#include "isa.h"
#include "pool.h"
#include "project/project.h"
#include "rotate/rotate.h"
#include "segment_scan/segment_scan.h"
#include "spans.h"

namespace codeword {
namespace {

// Bytes at a 64-byte boundary.
struct Scratch {
    std::unique_ptr<uint8_t[]> memory;
    uint8_t* at;
    explicit Scratch(int64_t bytes) : memory(new uint8_t[static_cast<size_t>(bytes) + 64]), at(memory.get()) {
        at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
    }
};

constexpr int64_t PIECE = 2048, ROUND = 64;  // rows a task, tasks a round: candidates of a round take 2 MB at most
constexpr int64_t FIRST = 64;                // rows of the first task; tasks double up to PIECE while the k-th distance still falls fast

struct Piece {
    int64_t start, stop;
    float coarse;
};

// Several workers on one query, with the answer of one: in every round pieces are looked at against the k-th distance before the round, which
// keeps at least the rows that one worker would, then these are gone through in order. collect(query, piece, worst, scratch, candidates)
// gives their number. False where there is too little to do.
template <class Collect>
bool split_scan(Collect collect, int64_t queries, const int64_t* ranges, const float* offsets, int64_t probes, int64_t k, int workers,
                int64_t scratch_bytes, float* out_distances, int64_t* out_rows) {
    std::vector<std::vector<Piece>> pieces(static_cast<size_t>(queries));
    size_t longest = 0;
    for (int64_t q = 0; q < queries; ++q) {
        auto& mine = pieces[static_cast<size_t>(q)];
        for (int64_t p = q * probes; p < (q + 1) * probes; ++p)
            for (int64_t start = ranges[2 * p]; start < ranges[2 * p + 1];) {
                const int64_t size = mine.size() < 5 ? FIRST << mine.size() : PIECE, stop = std::min(start + size, ranges[2 * p + 1]);
                mine.push_back({start, stop, offsets[p]});
                start = stop;
            }
        longest = std::max(longest, mine.size());
    }
    if (longest < 8) return false;
    Scratch scratch(product(scratch_bytes, workers));
    std::unique_ptr<BitCandidate[]> found(new BitCandidate[static_cast<size_t>(PIECE * ROUND)]);
    std::vector<int64_t> counts(ROUND);
    auto replay = CODEWORD_PICK(bit_replay);
    auto finish = CODEWORD_PICK(bit_finish);
    nb::gil_scoped_release release;
    for (int64_t q = 0; q < queries; ++q) {
        const auto& mine = pieces[static_cast<size_t>(q)];
        BitBest best{out_distances + k * q, out_rows + k * q, k, 0};
        const int64_t count = static_cast<int64_t>(mine.size());
        for (int64_t done = 0, round = 1; done < count;) {
            const int64_t tasks = std::min(round, count - done);
            const float worst = best.count < k ? INFINITY : best.distances[0];
            parallel(tasks, workers, [&](int64_t task, int slot) {
                counts[static_cast<size_t>(task)] = collect(q, mine[static_cast<size_t>(done + task)], worst, scratch.at + scratch_bytes * slot,
                                                            found.get() + PIECE * task);
            });
            for (int64_t task = 0; task < tasks; ++task) replay(found.get() + PIECE * task, counts[static_cast<size_t>(task)], best);
            done += tasks;
            round = done < 5 ? 1 : std::min(2 * round, ROUND);
        }
        finish(best);
    }
    return true;
}

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
    const int workers = threads(num_threads);
    const int64_t scratch_bytes = (CODEWORD_PICK(bit_scan_scratch)(blocks) + 127) / 64 * 64;
    auto query_of = [&](int64_t q) {
        const float* s = numbers + 4 * q;
        return BitQuery{table_values + 8 * eights * q, bits > 1 ? values + 32 * groups * q : nullptr, s[0], s[1], s[2], s[3], l2};
    };
    auto collect = [&, part = CODEWORD_PICK(bit_collect)](int64_t q, const Piece& piece, float worst, uint8_t* scratch, BitCandidate* found) {
        return part(blocks, query_of(q), piece.start, piece.stop, piece.coarse, worst, scratch, found);
    };
    if (queries < workers && split_scan(collect, queries, ranges, offsets, probes, k, workers, scratch_bytes, out_distances, out_rows)) return;
    // Neighbours with the same spans read the codes together, as long as every worker has something to do.
    const int64_t most = std::max<int64_t>(1, std::min(BIT_SHARED, queries / workers));
    std::vector<int64_t> firsts;
    for (int64_t q = 0; q < queries; q += alike(ranges + 2 * probes * q, probes, queries - q, most)) firsts.push_back(q);
    const int64_t tasks = static_cast<int64_t>(firsts.size());
    firsts.push_back(queries);
    Scratch scratch(product(product(scratch_bytes, BIT_SHARED), std::min<int64_t>(workers, tasks)));
    auto kernel = CODEWORD_PICK(bit_scan);
    nb::gil_scoped_release release;
    parallel(tasks, workers, [&](int64_t task, int slot) {
        BitQuery together[BIT_SHARED];
        const int64_t q = firsts[static_cast<size_t>(task)], count = firsts[static_cast<size_t>(task) + 1] - q;
        for (int64_t i = 0; i < count; ++i) together[i] = query_of(q + i);
        kernel(blocks, together, count, ranges + 2 * probes * q, offsets + probes * q, probes, k, scratch.at + BIT_SHARED * scratch_bytes * slot,
               out_distances + k * q, out_rows + k * q);
    });
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
    int64_t power = 1;
    while (power <= n / 2) power *= 2;
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(power)));
    const int workers = threads(num_threads);
    std::unique_ptr<float[]> scratch(new float[static_cast<size_t>(product(2 * n, workers))]);
    auto project = CODEWORD_PICK(project_one);
    auto turn = CODEWORD_PICK(rotate);
    auto integers = CODEWORD_PICK(bit_round);
    auto norm = CODEWORD_PICK(bit_norm);
    nb::gil_scoped_release release;
    const int64_t chunk = 16;
    parallel((count + chunk - 1) / chunk, workers, [&](int64_t part, int slot) {
        float *centred = scratch.get() + 2 * n * slot, *rotated = centred + n;
        for (int64_t q = part * chunk; q < count && q < (part + 1) * chunk; ++q) {
            const float* x = queries + q * n;
            float towards, steps[2], *numbers = scalars + 4 * q;
            project(x, center, &towards, n, 0, 1);
            for (int64_t i = 0; i < n; ++i) centred[i] = l2 ? x[i] - center[i] : x[i];
            turn(centred, signs, rotated, n, power, scale, false, 0, 1);
            integers(rotated, n, static_cast<int>(bits), z1 + q * eights, z + q * width, steps);
            norms[q] = norm(x, n);
            const float weight = l2 ? 0.5f : 0.25f;
            numbers[0] = steps[0] * weight;
            numbers[1] = steps[1] * weight;
            numbers[2] = towards * (l2 ? -2.0f : -1.0f);
            numbers[3] = l2 ? static_cast<float>(slack) : static_cast<float>(slack / 2) * std::sqrt(norms[q]);
        }
    });
}

// Where the segments of a plan lie, into parts and blocks; groups of 32 dimensions in the segments with more than one bit.
int64_t read_plan(const char* op, const In& plan_, SegmentPart* parts, SegmentBlocks& blocks) {
    const int64_t segments = size("plan", plan_, 0);
    if (segments < 1 || segments > SEGMENTS)
        refuse(std::string(op) + " got " + std::to_string(segments) + " segments; 1.." + std::to_string(SEGMENTS) + " are allowed");
    const int64_t* plan = in<int64_t>("plan", plan_, {segments, 2});
    int64_t groups = 0;
    for (int64_t s = 0; s < segments; ++s) {
        const int64_t length = plan[2 * s], bits = plan[2 * s + 1];
        if (length < 1 || length > (int64_t{1} << 24) || bits < 1 || bits > 13)
            refuse(std::string(op) + " got a segment of " + std::to_string(length) + " dimensions and " + std::to_string(bits) +
                   " bits; 1..2^24 and 1..13 are allowed");
        const int64_t eights = (length + 7) / 8, thirties = (length + 31) / 32;
        parts[s] = {eights, thirties, blocks.eights, blocks.width, 8 * blocks.eights, 32 * groups, bits > 1 ? blocks.refined : -1, static_cast<int>(bits)};
        blocks.eights += eights;
        blocks.width += 4 * (bits - 1) * thirties;
        groups += bits > 1 ? thirties : 0;
        blocks.refined += bits > 1;
    }
    blocks.parts = parts;
    blocks.count = segments;
    return groups;
}

// What queries multiply segments with, made ready for segment_scan: see segment_blocks.prepare_reference.
void segment_query(In z_, In centred_, In towards_, In plan_, In constants_, bool l2, Out z1_, Out wide_, Out scalars_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    SegmentPart parts[SEGMENTS];
    SegmentBlocks blocks{};
    const int64_t groups = read_plan("segment_query", plan_, parts, blocks), segments = blocks.count;
    const int64_t* plan = in<int64_t>("plan", plan_, {segments, 2});
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
    auto integers = CODEWORD_PICK(bit_round);
    auto square = CODEWORD_PICK(bit_square);
    nb::gil_scoped_release release;
    const int64_t chunk = 16;
    parallel((count + chunk - 1) / chunk, threads(num_threads), [&](int64_t part, int) {
        for (int64_t q = part * chunk; q < count && q < (part + 1) * chunk; ++q) {
            double squares[SEGMENTS], spread[SEGMENTS], total = 0;
            const float* from = z + q * coded;
            for (int64_t s = 0; s < segments; from += plan[2 * s], ++s) {
                squares[s] = square(from, plan[2 * s]);
                total = s ? total + squares[s] : squares[s];
            }
            double whole = l2 ? square(centred + q * dim, dim) : 0;
            whole = std::max(std::max(whole, total), 1e-300);
            float* numbers = scalars + q * (1 + 4 * segments);
            numbers[0] = static_cast<float>(static_cast<double>(towards[q]) * (l2 ? -2.0 : -1.0));
            from = z + q * coded;
            for (int64_t s = 0; s < segments; from += plan[2 * s], ++s) {
                const double share = l2 ? std::max(squares[s] / whole, constants[s]) : squares[s] / 4, unseen = constants[2 * segments + s];
                spread[s] = unseen < INFINITY ? unseen * share : INFINITY;
                float steps[2];
                integers(from, plan[2 * s], parts[s].bits, z1 + q * eights + parts[s].z1, wide + q * 32 * groups + parts[s].z, steps);
                const float weight = l2 ? 0.5f : 0.25f;
                numbers[1 + 4 * s] = steps[0] * weight;
                numbers[2 + 4 * s] = steps[1] * weight;
                numbers[3 + 4 * s] = static_cast<float>(constants[segments + s] * share);
            }
            for (int64_t s = 0; s < segments; ++s) {
                double left = spread[s];
                for (int64_t t = s + 1; t < segments; ++t) left += spread[t];
                numbers[4 + 4 * s] = static_cast<float>(left);
            }
        }
    });
}

void segment_scan(In planes, In factors, In centers, In rest, In rest_factors, In plan_, In z1, In z, In scalars, bool l2, In spans, In coarse,
                  std::optional<In> allowed, Out distances, Out rows_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    const int64_t block = 32;
    SegmentPart parts[SEGMENTS];
    SegmentBlocks blocks{};
    const int64_t groups = read_plan("segment_scan", plan_, parts, blocks), segments = blocks.count;
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
    const int workers = threads(num_threads);
    const int64_t scratch_bytes = CODEWORD_PICK(segment_scan_scratch)(blocks);
    auto query_of = [&](int64_t q) {
        return SegmentQuery{table_values + 8 * blocks.eights * q, values + 32 * groups * q, numbers + (1 + 4 * segments) * q, l2};
    };
    auto collect = [&, part = CODEWORD_PICK(segment_collect)](int64_t q, const Piece& piece, float worst, uint8_t* scratch, BitCandidate* found) {
        return part(blocks, query_of(q), piece.start, piece.stop, piece.coarse, worst, scratch, found);
    };
    if (queries < workers && split_scan(collect, queries, ranges, offsets, probes, k, workers, scratch_bytes, out_distances, out_rows)) return;
    Scratch scratch(product(scratch_bytes, std::min<int64_t>(workers, queries)));
    auto kernel = CODEWORD_PICK(segment_scan);
    nb::gil_scoped_release release;
    parallel(queries, workers, [&](int64_t q, int slot) {
        kernel(blocks, query_of(q), ranges + 2 * probes * q, offsets + probes * q, probes, k, scratch.at + scratch_bytes * slot, out_distances + k * q,
               out_rows + k * q);
    });
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
