#include "runs.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <thread>
#include <vector>

#include "arrays.h"
#include "isa.h"
#include "lut_tables/lut_tables.h"
#include "pool.h"
#include "project/project.h"
#include "rotate/rotate.h"
#include "spans.h"

namespace codeword {

namespace {
std::atomic<double> thread_bytes{1.5e6};
}

void set_thread_bytes(double bytes) { thread_bytes = bytes; }

int paying_threads(int workers, double bytes) {
    const double each = thread_bytes.load(std::memory_order_relaxed);
    return workers < 2 || bytes < 2 * each ? 1 : bytes < each * workers ? static_cast<int>(bytes / each) : workers;
}

namespace {

// Rows of all spans of a query, of the first `queries`.
double rows_of(const Visit& visit) {
    double rows = 0;
    for (int64_t i = 0; i < visit.queries * visit.probes; ++i)
        if (visit.spans[2 * i] < visit.spans[2 * i + 1]) rows += static_cast<double>(visit.spans[2 * i + 1] - visit.spans[2 * i]);
    return rows;
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

constexpr double PART_BYTES = 8e6;  // of codes: what a thread takes of one query at a time, so that a slow thread delays a fast one little

}  // namespace

void run_lut_scan(const LutBlocks& blocks, const float* values, const Visit& visit) {
    const int64_t queries = visit.queries, probes = visit.probes, k = visit.k;
    const int64_t* ranges = visit.spans;
    const double row_bytes = blocks.width == 4 ? (blocks.books + 3) / 4 * 2 : static_cast<double>(blocks.books * blocks.width / 8);
    const double total = rows_of(visit) * row_bytes;
    const int64_t workers = paying_threads(visit.workers, total);
    // Queries that visit the same rows go together; where there are fewer groups than threads, each group's rows are split.
    const int64_t most = std::min<int64_t>(LUT_QUERIES, std::max<int64_t>(1, queries / workers));
    std::vector<int64_t> firsts;
    for (int64_t q = 0; q < queries; q += alike(ranges + 2 * probes * q, probes, queries - q, most)) firsts.push_back(q);
    const int64_t groups = static_cast<int64_t>(firsts.size());
    int64_t parts = 1;
    if (groups && groups < workers) {
        parts = (workers + groups - 1) / groups;
        const double fine = total / static_cast<double>(queries) / PART_BYTES;
        if (fine > static_cast<double>(parts)) parts = std::min(static_cast<int64_t>(fine), 8 * parts);
    }
    if (parts > 1) visit.ready(0, queries);
    firsts.push_back(queries);
    const size_t bytes = lut_bytes(blocks.books, blocks.size, blocks.width);
    const int64_t slots = std::min(workers, std::max<int64_t>(1, groups * parts));
    const int64_t at_once = std::min<int64_t>(most, std::max<int64_t>(1, queries)), rooms = product(slots, at_once);
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
    parallel(groups * parts, static_cast<int>(slots), [&](int64_t chunk, int slot) {
        const int64_t group = chunk / parts, part = chunk % parts, first = firsts[group];
        const int num = static_cast<int>(firsts[group + 1] - first);
        if (parts == 1) visit.ready(first, num);
        LutQuery some[LUT_QUERIES];
        for (int i = 0; i < num; ++i) {
            const int64_t q = first + i, place = parts > 1 ? (q * parts + part) * k : q * k, room = slot * at_once + i;
            some[i] = {};
            some[i].tables = values + q * blocks.books * blocks.size;
            some[i].bytes = rounded.get() + room * static_cast<int64_t>(bytes);
            some[i].highs = highs.get() + room * k;
            some[i].candidates = candidates.get() + room * (LUT_WAITING + k);
            some[i].distances = (parts > 1 ? part_distances.data() : visit.distances) + place;
            some[i].rows = (parts > 1 ? part_rows.data() : visit.rows) + place;
            some[i].k = k;
            start(blocks, some[i]);
        }
        part_of_spans(ranges + 2 * probes * first, probes, part, parts, [&](int64_t p, int64_t from, int64_t to) {
            float base[LUT_QUERIES];
            for (int i = 0; i < num; ++i) base[i] = visit.coarse[(first + i) * probes + p];
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
        all.distances = visit.distances + q * k;
        all.rows = visit.rows + q * k;
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

// ---------------------------------------------------------------- scans in two and three looks

namespace {

constexpr int64_t PIECE = 2048, HELD = 64;  // rows of a piece, pieces that may wait for an earlier one: their candidates take 2 MB at most
constexpr int64_t FIRST = 64;               // rows of the first piece; they double up to PIECE while the k-th distance still falls fast

struct Piece {
    int64_t start, stop, span;
};

// One query's pieces on their way: looked at in any order, gone through in theirs.
struct Progress {
    BitBest best;
    std::atomic<float> worst{INFINITY};  // the k-th distance of the pieces gone through
    std::atomic<int64_t> next{0}, passed{0};
    std::atomic<int64_t> looked[HELD];   // by place: one more than the number of the piece that lies there
    int64_t counts[HELD];
    std::mutex turn;
};

// Several workers on one query, with the answer of one: a piece is looked at against a k-th distance of pieces before it, which keeps at least
// the rows that one worker would; candidates are then gone through in order. All in one go, without rounds: a worker that the system puts
// aside delays the others once. collect(query, piece, worst, scratch, fresh, candidates) gives their number; fresh: the scratch has not seen
// this query. False where there is too little to do.
template <class Collect>
bool split_scan(Collect collect, const Visit& visit, int workers, int64_t scratch_bytes) {
    std::vector<std::vector<Piece>> pieces(static_cast<size_t>(visit.queries));
    size_t longest = 0;
    for (int64_t q = 0; q < visit.queries; ++q) {
        auto& mine = pieces[static_cast<size_t>(q)];
        for (int64_t p = q * visit.probes; p < (q + 1) * visit.probes; ++p)
            for (int64_t start = visit.spans[2 * p]; start < visit.spans[2 * p + 1];) {
                const int64_t size = mine.size() < 5 ? FIRST << mine.size() : PIECE, stop = std::min(start + size, visit.spans[2 * p + 1]);
                mine.push_back({start, stop, p});
                start = stop;
            }
        longest = std::max(longest, mine.size());
    }
    if (longest < 8) return false;
    visit.ready(0, visit.queries);
    Scratch scratch(product(scratch_bytes, workers));
    std::unique_ptr<BitCandidate[]> found(new BitCandidate[static_cast<size_t>(PIECE * HELD)]);
    auto replay = CODEWORD_PICK(bit_replay);
    auto finish = CODEWORD_PICK(bit_finish);
    for (int64_t q = 0; q < visit.queries; ++q) {
        const auto& mine = pieces[static_cast<size_t>(q)];
        const int64_t count = static_cast<int64_t>(mine.size());
        Progress state{};
        state.best = BitBest{visit.distances + visit.k * q, visit.rows + visit.k * q, visit.k, 0};
        auto pass = [&] {  // whoever finds the turn free takes all that is next
            std::unique_lock<std::mutex> lock(state.turn, std::try_to_lock);
            if (!lock) return;
            int64_t piece = state.passed.load(std::memory_order_relaxed);
            for (; piece < count && state.looked[piece % HELD].load(std::memory_order_acquire) == piece + 1; ++piece)
                replay(found.get() + PIECE * (piece % HELD), state.counts[piece % HELD], state.best);
            if (state.best.count == visit.k) state.worst.store(state.best.distances[0], std::memory_order_relaxed);
            state.passed.store(piece, std::memory_order_release);
        };
        parallel(workers, workers, [&](int64_t, int slot) {
            bool fresh = true;
            for (int64_t piece; (piece = state.next.fetch_add(1, std::memory_order_relaxed)) < count;) {
                while (piece >= state.passed.load(std::memory_order_acquire) + HELD) {
                    pass();
                    std::this_thread::yield();
                }
                const float worst = state.worst.load(std::memory_order_relaxed);
                state.counts[piece % HELD] = collect(q, mine[static_cast<size_t>(piece)], worst, scratch.at + scratch_bytes * slot, fresh,
                                                     found.get() + PIECE * (piece % HELD));
                state.looked[piece % HELD].store(piece + 1, std::memory_order_release);
                fresh = false;
                pass();
            }
        });
        pass();
        finish(state.best);
    }
    return true;
}

}  // namespace

void run_bit_scan(const BitBlocks& blocks, const BitQueries& all, const Visit& visit) {
    const int64_t queries = visit.queries, probes = visit.probes, k = visit.k;
    const int workers = paying_threads(visit.workers, rows_of(visit) * static_cast<double>(blocks.eights + 12));
    const int64_t scratch_bytes = (CODEWORD_PICK(bit_scan_scratch)(blocks) + 127) / 64 * 64;
    auto query_of = [&](int64_t q) {
        const float* s = all.scalars + 4 * q;
        return BitQuery{all.z1 + 8 * blocks.eights * q, blocks.bits > 1 ? all.z + 32 * blocks.groups * q : nullptr, s[0], s[1], s[2], s[3], all.l2};
    };
    auto collect = [&, part = CODEWORD_PICK(bit_collect)](int64_t q, const Piece& piece, float worst, uint8_t* scratch, bool fresh,
                                                          BitCandidate* found) {
        return part(blocks, query_of(q), piece.start, piece.stop, visit.coarse[piece.span], worst, scratch, fresh, found);
    };
    if (queries < workers && split_scan(collect, visit, workers, scratch_bytes)) return;
    // Neighbours with the same spans read the codes together, as long as every worker has something to do.
    const int64_t most = std::max<int64_t>(1, std::min(BIT_SHARED, queries / workers));
    std::vector<int64_t> firsts;
    for (int64_t q = 0; q < queries; q += alike(visit.spans + 2 * probes * q, probes, queries - q, most)) firsts.push_back(q);
    const int64_t tasks = static_cast<int64_t>(firsts.size());
    firsts.push_back(queries);
    Scratch scratch(product(product(scratch_bytes, BIT_SHARED), std::min<int64_t>(workers, tasks)));
    auto kernel = CODEWORD_PICK(bit_scan);
    parallel(tasks, workers, [&](int64_t task, int slot) {
        BitQuery together[BIT_SHARED];
        const int64_t q = firsts[static_cast<size_t>(task)], count = firsts[static_cast<size_t>(task) + 1] - q;
        visit.ready(q, count);
        for (int64_t i = 0; i < count; ++i) together[i] = query_of(q + i);
        kernel(blocks, together, count, visit.spans + 2 * probes * q, visit.coarse + probes * q, probes, k,
               scratch.at + BIT_SHARED * scratch_bytes * slot, visit.distances + k * q, visit.rows + k * q);
    });
}

void run_segment_scan(const SegmentBlocks& blocks, const SegmentQueries& all, const Visit& visit) {
    const int64_t queries = visit.queries, probes = visit.probes, k = visit.k;
    const int workers = paying_threads(visit.workers, rows_of(visit) * static_cast<double>(blocks.eights + 4 * (1 + 2 * blocks.count)));
    const int64_t scratch_bytes = CODEWORD_PICK(segment_scan_scratch)(blocks);
    auto query_of = [&](int64_t q) {
        return SegmentQuery{all.z1 + 8 * blocks.eights * q, all.z + 32 * all.groups * q, all.scalars + (1 + 4 * blocks.count) * q, all.l2};
    };
    auto collect = [&, part = CODEWORD_PICK(segment_collect)](int64_t q, const Piece& piece, float worst, uint8_t* scratch, bool fresh,
                                                              BitCandidate* found) {
        return part(blocks, query_of(q), piece.start, piece.stop, visit.coarse[piece.span], worst, scratch, fresh, found);
    };
    if (queries < workers && split_scan(collect, visit, workers, scratch_bytes)) return;
    Scratch scratch(product(scratch_bytes, std::min<int64_t>(workers, queries)));
    auto kernel = CODEWORD_PICK(segment_scan);
    const int64_t each = std::min<int64_t>(16, std::max<int64_t>(1, queries / (4 * workers)));  // queries a task: they are made ready together
    parallel((queries + each - 1) / each, workers, [&](int64_t task, int slot) {
        const int64_t first = task * each, last = std::min(queries, first + each);
        visit.ready(first, last - first);
        for (int64_t q = first; q < last; ++q)
            kernel(blocks, query_of(q), visit.spans + 2 * probes * q, visit.coarse + probes * q, probes, k, scratch.at + scratch_bytes * slot,
                   visit.distances + k * q, visit.rows + k * q);
    });
}

// ---------------------------------------------------------------- queries made ready

// Where the segments of a plan lie, into parts and blocks; groups of 32 dimensions in the segments with more than one bit.
int64_t read_plan(const char* op, const int64_t* plan, int64_t segments, SegmentPart* parts, SegmentBlocks& blocks) {
    if (segments < 1 || segments > SEGMENTS)
        refuse(std::string(op) + " got " + std::to_string(segments) + " segments; 1.." + std::to_string(SEGMENTS) + " are allowed");
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

float square_norm(const float* x, int64_t dim) { return CODEWORD_PICK(bit_norm)(x, dim); }

void BitPreparation::row(const float* x, float norm, float* scratch, int8_t* z1, int16_t* z, float* scalars) const {
    int64_t power = 1;
    while (power <= dim / 2) power *= 2;
    float *centred = scratch, *rotated = scratch + dim, towards, steps[2];
    CODEWORD_PICK(project_one)(x, center, &towards, dim, 0, 1);
    for (int64_t i = 0; i < dim; ++i) centred[i] = l2 ? x[i] - center[i] : x[i];
    CODEWORD_PICK(rotate)(centred, signs, rotated, dim, power, static_cast<float>(1.0 / std::sqrt(static_cast<double>(power))), false, 0, 1);
    CODEWORD_PICK(bit_round)(rotated, dim, bits, z1, z, steps);
    const float weight = l2 ? 0.5f : 0.25f;
    scalars[0] = steps[0] * weight;
    scalars[1] = steps[1] * weight;
    scalars[2] = towards * (l2 ? -2.0f : -1.0f);
    scalars[3] = l2 ? static_cast<float>(slack) : static_cast<float>(slack / 2) * std::sqrt(norm);
}

void SegmentPreparation::row(const SegmentBlocks& blocks, const float* z, const float* centred, int64_t dim, float towards, int8_t* z1,
                             int16_t* wide, float* numbers) const {
    auto integers = CODEWORD_PICK(bit_round);
    auto square = CODEWORD_PICK(bit_square);
    const int64_t segments = blocks.count;
    double squares[SEGMENTS], spread[SEGMENTS], total = 0;
    const float* from = z;
    for (int64_t s = 0; s < segments; from += plan[2 * s], ++s) {
        squares[s] = square(from, plan[2 * s]);
        total = s ? total + squares[s] : squares[s];
    }
    double whole = l2 ? square(centred, dim) : 0;
    whole = std::max(std::max(whole, total), 1e-300);
    numbers[0] = static_cast<float>(static_cast<double>(towards) * (l2 ? -2.0 : -1.0));
    from = z;
    for (int64_t s = 0; s < segments; from += plan[2 * s], ++s) {
        const double share = l2 ? std::max(squares[s] / whole, constants[s]) : squares[s] / 4, unseen = constants[2 * segments + s];
        spread[s] = unseen < INFINITY ? unseen * share : INFINITY;
        float steps[2];
        integers(from, plan[2 * s], blocks.parts[s].bits, z1 + blocks.parts[s].z1, wide + blocks.parts[s].z, steps);
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

void table_rows(const float* queries, int64_t count, const float* codebooks, int64_t books, int64_t dim, int64_t size, double factor,
                const double* first, float* out) {
    auto kernel = CODEWORD_PICK(lut_tables);
    for (int64_t m = 0; m < books; ++m)
        kernel(queries + m * dim, count, books * dim, codebooks + m * size * dim, size, dim, factor, first ? first + m * size : nullptr, out + m * size,
               books * size);
}

}  // namespace codeword
