#include "bit_scan/bit_scan.h"

#include <math.h>

#include "best.h"
#include "bit_scan/first_look.h"
#include "bit_scan/second_look.h"
#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int64_t LINE = 64;
constexpr int DEPTH = 8;            // blocks whose rows may wait for their second look
constexpr int64_t EARLY = 32;       // blocks, of the first ones, that wait for one other only: there the k-th distance still falls fast

// A query made ready: tables, split values, constants.
struct Ready {
    const BitQuery* query;
    const uint8_t* tables;
    Split split;
    int32_t absolute;
    int64_t centre;
};

Ready ready(const BitBlocks& blocks, const BitQuery& query, uint8_t* scratch) {
    Ready out{};
    out.query = &query;
    out.tables = scratch;
    out.absolute = static_cast<int32_t>(fill_tables(query.z1, blocks.eights, scratch));
    if (blocks.bits > 1) {
        out.split = split(query.z, blocks.groups, scratch + table_bytes(blocks.eights));
        out.centre = ((int64_t{1} << blocks.bits) - 1) * out.split.sum;
    }
    return out;
}

// The same, kept at the front of scratch for the next piece of the query.
constexpr int64_t READY_BYTES = 64 * ((sizeof(Ready) + 63) / 64);
const Ready& kept(const BitBlocks& blocks, const BitQuery& query, uint8_t* scratch, bool fresh) {
    Ready* at = reinterpret_cast<Ready*>(scratch);
    if (fresh) *at = ready(blocks, query, scratch + READY_BYTES);
    at->query = &query;
    return *at;
}

CODEWORD_INLINE float spread_of(const BitBlocks& blocks, const BitQuery& query, float base, int64_t block) {
    if (!query.l2) return query.slack;
    float square = base + blocks.centers[block];
    return query.slack * __builtin_sqrtf(square > 0 ? square : 0.0f);
}

// Lower bounds (bits > 1) or distances (bits = 1) of a block from its table sums, and the rows not beyond worst as bits of the result.
CODEWORD_INLINE uint32_t first_look(const int32_t* sums, int32_t absolute, const float* factors, const BitQuery& query, bool one_bit, float base,
                                    float spread, float worst, float* bounds) {
    const float *add = factors, *rescale = factors + BLOCK, *error = factors + 2 * BLOCK;
    uint32_t near = 0;
    CODEWORD_UNROLL
    for (int j = 0; j < BLOCK; j += F32) {
        i32v t = 2 * load<i32v>(sums + j) - absolute;
        f32v part = load<f32v>(rescale + j) * (query.step1 * __builtin_convertvector(t, f32v));
        if (query.l2) part = load<f32v>(add + j) + part;
        f32v bound = base + part;
        if (!one_bit) bound = bound - load<f32v>(error + j) * spread;
        store(bounds + j, bound);
#if defined(__AVX512F__)
        near |= static_cast<uint32_t>(_mm512_cmp_ps_mask(bound, _mm512_set1_ps(worst), _CMP_LE_OQ)) << j;
#else
        near |= any_of(bound <= splat(worst)) << j;
#endif
    }
    return near;
}

CODEWORD_INLINE float second_look(const BitBlocks& blocks, const Ready& ready, Dot dot_all, int64_t row, float base) {
    const uint8_t* planes = blocks.planes + row / BLOCK * blocks.eights * BLOCK;
    const int64_t u = dot_all(planes, static_cast<int>(row % BLOCK), blocks.rest + row * blocks.width, ready.split, blocks.eights, blocks.groups);
    const float* factors = blocks.rest_factors + 3 * row;
    float part = factors[1] * (ready.query->step2 * static_cast<float>(2 * u - ready.centre));
    if (ready.query->l2) part = factors[0] + part;
    return base + part;
}

CODEWORD_INLINE void prefetch_row(const BitBlocks& blocks, int64_t row) {
    const uint8_t* at = blocks.rest + row * blocks.width;
    for (int64_t i = 0; i < blocks.width; i += LINE) __builtin_prefetch(at + i);
    if (blocks.width) __builtin_prefetch(at + blocks.width - 1);  // rows do not start at a line
    __builtin_prefetch(blocks.rest_factors + 3 * row);
}

// Rows of a block that passed its first look and wait for the second while the first looks at the next blocks hide their cache misses.
struct Waiting {
    uint32_t near;
    int64_t first;
    float base;
    alignas(64) float bounds[BLOCK];
};

CODEWORD_INLINE void settle(const BitBlocks& blocks, const Ready& ready, Dot dot_all, const Waiting& waiting, Best& best) {
    for (uint32_t near = waiting.near; near; near &= near - 1) {
        const int j = __builtin_ctz(near);
        const int64_t row = waiting.first + j;
        if (!(waiting.bounds[j] <= best.worst()) || (blocks.allowed && !blocks.allowed[row])) continue;
        best.offer(dot_all ? second_look(blocks, ready, dot_all, row, waiting.base) : waiting.bounds[j], row);
    }
}

CODEWORD_INLINE uint32_t tail(int64_t rows) { return rows < BLOCK ? (uint32_t{1} << rows) - 1 : ~uint32_t{0}; }

template <int Q>
void scan(const BitBlocks& blocks, const Ready* ready, const int64_t* spans, const float* coarse, int64_t probes, Best* best) {
    const Dot dot_all = dot_of(blocks.bits);
    const uint8_t* tables[Q];
    for (int q = 0; q < Q; ++q) tables[q] = ready[q].tables;
    Waiting waiting[DEPTH][Q];
    int64_t seen = 0, settled = 0;  // blocks
    auto settle_next = [&] {
        for (int q = 0; q < Q; ++q)
            if (waiting[settled % DEPTH][q].near) settle(blocks, ready[q], dot_all, waiting[settled % DEPTH][q], best[q]);
        ++settled;
    };
    for (int64_t p = 0; p < probes; ++p) {
        const int64_t start = spans[2 * p], stop = spans[2 * p + 1];
        for (int64_t first = start; first < stop; first += BLOCK) {
            const int64_t b = first / BLOCK;
            const float* factors = blocks.factors + b * 3 * BLOCK;
            alignas(64) int32_t sums[Q][BLOCK];
            table_sums<Q>(blocks.planes + b * blocks.eights * BLOCK, tables, blocks.eights, sums);
            for (int q = 0; q < Q; ++q) {
                const BitQuery& query = *ready[q].query;
                Waiting& now = waiting[seen % DEPTH][q];
                now.base = coarse[probes * q + p] + query.offset;
                now.first = first;
                const float spread = dot_all ? spread_of(blocks, query, now.base, b) : 0.0f;
                now.near = first_look(sums[q], ready[q].absolute, factors, query, !dot_all, now.base, spread, best[q].worst(), now.bounds) &
                           tail(stop - first);
                if (!dot_all) {
                    if (now.near) settle(blocks, ready[q], nullptr, now, best[q]);
                    continue;
                }
                for (uint32_t near = now.near; near; near &= near - 1) prefetch_row(blocks, first + __builtin_ctz(near));
            }
            if (!dot_all) continue;
            ++seen;
            for (const int64_t most = seen > EARLY ? DEPTH - 1 : 1; seen - settled > most;) settle_next();
        }
    }
    while (settled < seen) settle_next();
}

}  // namespace

void bit_round(const float* rotated, int64_t n, int bits, int8_t* z1, int16_t* z, float* steps) {
    float fours = 0.0f, largest = 0.0f;
    for (int64_t i = 0; i < n; i += 4) {
        float a[4] = {};
        for (int64_t j = i; j < n && j < i + 4; ++j) {
            a[j - i] = __builtin_fabsf(rotated[j]);
            largest = a[j - i] > largest ? a[j - i] : largest;
        }
        const float sum = (a[0] + a[1]) + (a[2] + a[3]);
        fours = sum > fours ? sum : fours;
    }
    steps[0] = fours / 125.0f;
    steps[1] = 0.0f;
    const float step1 = steps[0] > 1e-38f ? steps[0] : 1e-38f;
    for (int64_t i = 0; i < n; ++i) z1[i] = static_cast<int8_t>(__builtin_rintf(rotated[i] / step1));
    for (int64_t i = n; i < (n + 7) / 8 * 8; ++i) z1[i] = 0;
    if (bits == 1) return;
    // Eight lanes of int32 must hold their share of the products.
    const int64_t width = (n + GROUP - 1) / GROUP * GROUP, room = ((int64_t{1} << 34) - 1) / (((int64_t{1} << bits) - 1) * width);
    steps[1] = largest / static_cast<float>(room < 32767 ? room : 32767);
    const float step2 = steps[1] > 1e-38f ? steps[1] : 1e-38f;
    for (int64_t i = 0; i < n; ++i) z[i] = static_cast<int16_t>(__builtin_rintf(rotated[i] / step2));
    for (int64_t i = n; i < width; ++i) z[i] = 0;
}

double bit_square(const float* x, int64_t n) {
    double lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; ++j) lanes[j] += static_cast<double>(x[i + j]) * x[i + j];
    for (int j = 0; i + j < n; ++j) lanes[j] += static_cast<double>(x[i + j]) * x[i + j];
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

float bit_norm(const float* x, int64_t n) {
    const double square = bit_square(x, n);  // float32 entries cannot overflow it
    return square < INFINITY ? static_cast<float>(square) : NAN;
}

int64_t bit_scan_scratch(const BitBlocks& blocks) { return READY_BYTES + table_bytes(blocks.eights) + split_bytes(blocks.groups); }

void bit_scan(const BitBlocks& blocks, const BitQuery* queries, int64_t together, const int64_t* spans, const float* coarse, int64_t probes,
              int64_t k, uint8_t* scratch, float* distances, int64_t* rows) {
    Ready all[BIT_SHARED];
    Best best[BIT_SHARED];
    for (int64_t q = 0; q < together; ++q) {
        all[q] = ready(blocks, queries[q], scratch + q * bit_scan_scratch(blocks));
        best[q] = Best{distances + k * q, rows + k * q, k, 0};
    }
    switch (together) {
        case 4: scan<4>(blocks, all, spans, coarse, probes, best); break;
        case 3: scan<3>(blocks, all, spans, coarse, probes, best); break;
        case 2: scan<2>(blocks, all, spans, coarse, probes, best); break;
        default: scan<1>(blocks, all, spans, coarse, probes, best);
    }
    for (int64_t q = 0; q < together; ++q) best[q].finish();
}

int64_t bit_collect(const BitBlocks& blocks, const BitQuery& query, int64_t start, int64_t stop, float coarse, float worst, uint8_t* scratch,
                    bool fresh, BitCandidate* out) {
    const Ready& one = kept(blocks, query, scratch, fresh);
    const Dot dot_all = dot_of(blocks.bits);
    const float base = coarse + query.offset;
    BitCandidate* next = out;
    for (int64_t first = start; first < stop; first += BLOCK) {
        const int64_t b = first / BLOCK;
        alignas(64) int32_t sums[1][BLOCK];
        alignas(64) float bounds[BLOCK];
        table_sums<1>(blocks.planes + b * blocks.eights * BLOCK, &one.tables, blocks.eights, sums);
        const float spread = dot_all ? spread_of(blocks, query, base, b) : 0.0f;
        uint32_t near = first_look(sums[0], one.absolute, blocks.factors + b * 3 * BLOCK, query, !dot_all, base, spread, worst, bounds) &
                        tail(stop - first);
        for (; near; near &= near - 1) {
            const int j = __builtin_ctz(near);
            if (blocks.allowed && !blocks.allowed[first + j]) continue;
            if (dot_all) prefetch_row(blocks, first + j);
            *next++ = BitCandidate{bounds[j], bounds[j], first + j};
        }
    }
    if (dot_all)
        for (BitCandidate* c = out; c != next; ++c) c->distance = second_look(blocks, one, dot_all, c->row, base);
    return next - out;
}

void bit_replay(const BitCandidate* candidates, int64_t count, BitBest& state) {
    Best best{state.distances, state.rows, state.k, state.count};
    for (int64_t i = 0; i < count; ++i)
        if (candidates[i].bound <= best.worst()) best.offer(candidates[i].distance, candidates[i].row);
    state.count = best.count;
}

void bit_finish(BitBest& state) {
    Best best{state.distances, state.rows, state.k, state.count};
    best.finish();
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
