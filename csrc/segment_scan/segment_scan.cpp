#include "segment_scan/segment_scan.h"

#include <math.h>

#include "best.h"
#include "bit_scan/first_look.h"
#include "bit_scan/second_look.h"
#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

    CODEWORD_INLINE f32v root(f32v v) {
#if defined(__AVX512F__)
        return _mm512_sqrt_ps(v);
#elif defined(__AVX2__) && CODEWORD_VECTOR_BYTES == 32
        return _mm256_sqrt_ps(v);
#elif defined(__SSE2__) && CODEWORD_VECTOR_BYTES == 16
        return _mm_sqrt_ps(v);
#else
        for (int i = 0; i < F32; ++i) v[i] = __builtin_sqrtf(v[i]);
        return v;
#endif
    }

// Lanes within worst, as bits.
    CODEWORD_INLINE uint32_t within(f32v value, float worst) {
#if defined(__AVX512F__)
        return _mm512_cmp_ps_mask(value, _mm512_set1_ps(worst), _CMP_LE_OQ);
#else
        return any_of(value <= splat(worst));
#endif
    }

// A segment of a query made ready: tables, split values, constants.
struct Ready {
    const uint8_t* tables;
    Split split;
    Dot dot;  // null where the segment has one bit
    int64_t centre;
    int32_t absolute;
    float step1, step2, noise, unseen;  // unseen: of the segments after this one
};

// A block between its first two looks and the third: what its rows have shown, and which rows are left.
struct Seen {
    uint32_t near;
    int64_t first;
    float base, spread;
    alignas(64) float bounds[BLOCK];   // the largest so far
    alignas(64) float estimates[BLOCK];
    alignas(64) float variances[BLOCK];
};

struct Scan {
    const SegmentBlocks& blocks;
    const SegmentQuery& query;
    Ready* ready;
    float* shares[2];  // f of every segment of two blocks, (count, 32)

    // fresh: scratch does not hold this query yet.
    Scan(const SegmentBlocks& b, const SegmentQuery& q, uint8_t* scratch, bool fresh) : blocks(b), query(q) {
        ready = reinterpret_cast<Ready*>(scratch);
        scratch += (sizeof(Ready) * static_cast<size_t>(b.count) + 63) / 64 * 64;
        for (float*& share : shares) {
            share = reinterpret_cast<float*>(scratch);
            scratch += sizeof(float) * BLOCK * static_cast<size_t>(b.count);
        }
        for (int64_t s = 0; fresh && s < b.count; ++s) {
            const SegmentPart& part = b.parts[s];
            const float* scalars = q.scalars + 1 + 4 * s;
            Ready one{};
            one.tables = scratch;
            one.absolute = static_cast<int32_t>(fill_tables(q.z1 + part.z1, part.eights, scratch));
            scratch += table_bytes(part.eights);
            one.dot = dot_of(part.bits);
            if (one.dot) {
                one.split = split(q.z + part.z, part.groups, scratch);
                scratch += split_bytes(part.groups);
                one.centre = ((int64_t{1} << part.bits) - 1) * one.split.sum;
            }
            one.step1 = scalars[0], one.step2 = scalars[1], one.noise = scalars[2];
            one.unseen = s + 1 < b.count ? scalars[4 + 3] : 0.0f;
            ready[s] = one;
        }
    }

    // Widen the largest bounds by those of this stage; the rows within worst.
    uint32_t bound(Seen& seen, float unseen, float worst) const {
        uint32_t near = 0;
        CODEWORD_UNROLL
        for (int j = 0; j < BLOCK; j += F32) {
            f32v now = load<f32v>(seen.estimates + j) - root(seen.spread * (unseen + load<f32v>(seen.variances + j)));
            store(seen.bounds + j, max(now, load<f32v>(seen.bounds + j)));
            near |= within(now, worst) << j;
        }
        return near;
    }

    // The first two looks at rows first..min(first + 32, stop).
    void look(int64_t first, int64_t stop, float coarse, float worst, Seen& seen, float* shares_) const {
        const int64_t b = first / BLOCK;
        const float* factors = blocks.factors + b * (1 + 2 * blocks.count) * BLOCK;
        seen.first = first;
        seen.base = coarse + query.scalars[0];
        float square = query.l2 ? seen.base + blocks.centers[b] : 1.0f;
        seen.spread = square > 0 ? square : 0.0f;
        seen.near = stop - first < BLOCK ? (uint32_t{1} << (stop - first)) - 1 : ~uint32_t{0};
        for (int j = 0; j < BLOCK; j += F32) {
            store(seen.estimates + j, query.l2 ? seen.base + load<f32v>(factors + j) : splat(seen.base));
            store(seen.variances + j, splat(0.0f));
            store(seen.bounds + j, splat(-INFINITY));
        }
        const float unseen = query.scalars[1 + 3];
        if (unseen < INFINITY) seen.near &= bound(seen, unseen, worst);
        for (int64_t s = 0; s < blocks.count && seen.near; ++s) {
            const Ready& one = ready[s];
            const float *add = factors + (1 + 2 * s) * BLOCK, *rescale = add + BLOCK;
            alignas(64) int32_t sums[1][BLOCK];
            table_sums<1>(blocks.planes + (b * blocks.eights + blocks.parts[s].plane) * BLOCK, &one.tables, blocks.parts[s].eights, sums);
            CODEWORD_UNROLL
            for (int j = 0; j < BLOCK; j += F32) {
                i32v t = 2 * load<i32v>(sums[0] + j) - one.absolute;
                f32v scale = load<f32v>(rescale + j), share = scale * (one.step1 * __builtin_convertvector(t, f32v));
                if (query.l2) share = load<f32v>(add + j) + share;
                store(shares_ + BLOCK * s + j, share);
                store(seen.estimates + j, load<f32v>(seen.estimates + j) + share);
                store(seen.variances + j, load<f32v>(seen.variances + j) + one.noise * (scale * scale));
            }
            if (one.unseen < INFINITY) seen.near &= bound(seen, one.unseen, worst);
        }
    }

    // The third look at row j of a block. False as soon as a bound exceeds worst.
    bool refine(const Seen& seen, const float* shares_, int j, float worst, float& distance, float& largest) const {
        const int64_t row = seen.first + j, b = seen.first / BLOCK;
        const float* factors = blocks.factors + b * (1 + 2 * blocks.count) * BLOCK + j;
        float left[SEGMENTS + 1], loud[SEGMENTS + 1];
        left[blocks.count] = loud[blocks.count] = 0.0f;
        for (int64_t s = blocks.count - 1; s > 0; --s) {
            const float rescale = factors[(2 + 2 * s) * BLOCK];
            left[s] = shares_[BLOCK * s + j] + left[s + 1];
            loud[s] = ready[s].noise * (rescale * rescale) + loud[s + 1];
        }
        distance = query.l2 ? seen.base + factors[0] : seen.base;
        largest = seen.bounds[j];
        for (int64_t s = 0; s < blocks.count; ++s) {
            const SegmentPart& part = blocks.parts[s];
            float share = shares_[BLOCK * s + j];
            if (ready[s].dot) {
                const uint8_t* planes = blocks.planes + (b * blocks.eights + part.plane) * BLOCK;
                const int64_t u = ready[s].dot(planes, j, blocks.rest + row * blocks.width + part.rest, ready[s].split, part.eights, part.groups);
                const float* full = blocks.rest_factors + 2 * (row * blocks.refined + part.factor);
                share = full[1] * (ready[s].step2 * static_cast<float>(2 * u - ready[s].centre));
                if (query.l2) share = full[0] + share;
            }
            distance = distance + share;
            if (s + 1 == blocks.count) break;
            const float now = (distance + left[s + 1]) - __builtin_sqrtf(seen.spread * loud[s + 1]);
            if (!(now <= worst)) return false;
            if (now > largest) largest = now;
        }
        return true;
    }

    void prefetch(const Seen& seen) const {
        for (uint32_t near = seen.near; near; near &= near - 1) {
            const int64_t row = seen.first + __builtin_ctz(near);
            for (int64_t i = 0; i < blocks.width; i += 64) __builtin_prefetch(blocks.rest + row * blocks.width + i);
            __builtin_prefetch(blocks.rest_factors + 2 * row * blocks.refined);
        }
    }

    void settle(const Seen& seen, const float* shares_, Best& best) const {
        for (uint32_t near = seen.near; near; near &= near - 1) {
            const int j = __builtin_ctz(near);
            const int64_t row = seen.first + j;
            float distance, largest;
            if (!(seen.bounds[j] <= best.worst()) || (blocks.allowed && !blocks.allowed[row])) continue;
            if (refine(seen, shares_, j, best.worst(), distance, largest)) best.offer(distance, row);
        }
    }
};

}  // namespace

int64_t segment_scan_scratch(const SegmentBlocks& blocks) {
    int64_t bytes = (static_cast<int64_t>(sizeof(Ready)) * blocks.count + 63) / 64 * 64 + 2 * 4 * BLOCK * blocks.count;
    for (int64_t s = 0; s < blocks.count; ++s) bytes += table_bytes(blocks.parts[s].eights) + split_bytes(blocks.parts[s].groups);
    return bytes;
}

void segment_scan(const SegmentBlocks& blocks, const SegmentQuery& query, const int64_t* spans, const float* coarse, int64_t probes, int64_t k,
                  uint8_t* scratch, float* distances, int64_t* rows) {
    const Scan scan(blocks, query, scratch, true);
    Best best{distances, rows, k, 0};
    Seen seen[2];  // the third look at a block waits for the first two at the next one, which hide its cache misses
    seen[0].near = seen[1].near = 0;
    int turn = 0;
    for (int64_t p = 0; p < probes; ++p) {
        for (int64_t first = spans[2 * p]; first < spans[2 * p + 1]; first += BLOCK) {
            scan.look(first, spans[2 * p + 1], coarse[p], best.worst(), seen[turn], scan.shares[turn]);
            if (seen[turn].near) scan.prefetch(seen[turn]);
            turn ^= 1;
            if (seen[turn].near) scan.settle(seen[turn], scan.shares[turn], best);
            seen[turn].near = 0;
        }
    }
    scan.settle(seen[turn ^ 1], scan.shares[turn ^ 1], best);
    best.finish();
}

int64_t segment_collect(const SegmentBlocks& blocks, const SegmentQuery& query, int64_t start, int64_t stop, float coarse, float worst,
                        uint8_t* scratch, bool fresh, BitCandidate* out) {
    const Scan scan(blocks, query, scratch, fresh);
    BitCandidate* next = out;
    Seen seen;
    for (int64_t first = start; first < stop; first += BLOCK) {
        scan.look(first, stop, coarse, worst, seen, scan.shares[0]);
        for (uint32_t near = seen.near; near; near &= near - 1) {
            const int j = __builtin_ctz(near);
            if (blocks.allowed && !blocks.allowed[first + j]) continue;
            next->row = first + j;
            if (scan.refine(seen, scan.shares[0], j, worst, next->distance, next->bound)) ++next;
        }
    }
    return next - out;
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
