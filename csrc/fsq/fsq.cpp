#include "fsq/fsq.h"

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int64_t MOST = FSQ_DIMS * FSQ_TOKENS;

// One block of FSQ_TOKENS tokens. Lanes run over the numbers of successive tokens: dimension i of a token is lane i modulo dims.
CODEWORD_INLINE void round_block(const float* z, const FsqTables& t, int64_t* index, float* values, float* shifted) {
    const int64_t numbers = FSQ_TOKENS * t.dims;
    alignas(64) uint32_t part[MOST];
    for (int64_t at = 0; at < numbers; at += F32) {
        const f32v x = load<f32v>(z + at);
        i32v digit{};
        for (int64_t e = 0; e < t.edge_count; ++e) digit -= x >= load<f32v>(t.edges + e * numbers + at);  // a lane that holds is -1
        const f32v steps = load<f32v>(t.steps + at);
        const f32v value = (__builtin_convertvector(digit, f32v) * load<f32v>(t.rise + at) - steps) / steps;
        store(values + at, x == x ? value : x);
        store(shifted + at, x + load<f32v>(t.shift + at));
        store(part + at, (u32v)digit * load<u32v>(t.radix + at));
    }
    const uint32_t* from = part;
    for (int64_t token = 0; token < FSQ_TOKENS; ++token, from += t.dims) {
        uint32_t sum = 0;
        for (int64_t i = 0; i < t.dims; ++i) sum += from[i];
        index[token] = sum;
    }
}

CODEWORD_INLINE void curve_block(const float* curve, const float* values, int64_t dims, const float* scale, const float* base, float* slope, float* gap) {
    const f32v one = splat(1.0f);
    alignas(64) float square[MOST];
    for (int64_t at = 0; at < FSQ_TOKENS * dims; at += F32) {
        const f32v t = load<f32v>(curve + at), s = load<f32v>(scale + at);
        const f32v miss = load<f32v>(values + at) - (t * s - load<f32v>(base + at));
        store(square + at, miss * miss);
        store(slope + at, (one - t * t) * s);
    }
    const float* from = square;
    for (int64_t token = 0; token < FSQ_TOKENS; ++token, from += dims) {
        float sum = from[0];
        for (int64_t i = 1; i < dims; ++i) sum += from[i];
        gap[token] = sum;
    }
}

CODEWORD_INLINE void copy(float* to, const float* from, int64_t count) { __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(float)); }

}  // namespace

void fsq_round(const float* z, int64_t tokens, const FsqTables& t, int64_t* index, float* values, float* shifted) {
    int64_t done = 0;
    for (; done + FSQ_TOKENS <= tokens; done += FSQ_TOKENS)
        round_block(z + done * t.dims, t, index + done, values + done * t.dims, shifted + done * t.dims);
    if (done == tokens) return;
    float last[MOST] = {}, last_values[MOST], last_shifted[MOST];
    int64_t last_index[FSQ_TOKENS];
    const int64_t left = (tokens - done) * t.dims;
    copy(last, z + done * t.dims, left);
    round_block(last, t, last_index, last_values, last_shifted);
    copy(values + done * t.dims, last_values, left);
    copy(shifted + done * t.dims, last_shifted, left);
    for (int64_t i = 0; done + i < tokens; ++i) index[done + i] = last_index[i];
}

void fsq_curve(const float* curve, const float* values, int64_t tokens, int64_t dims, const float* scale, const float* base, float* slope, float* gap) {
    int64_t done = 0;
    for (; done + FSQ_TOKENS <= tokens; done += FSQ_TOKENS)
        curve_block(curve + done * dims, values + done * dims, dims, scale, base, slope + done * dims, gap + done);
    if (done == tokens) return;
    float last[MOST] = {}, last_values[MOST] = {}, last_slope[MOST], last_gap[FSQ_TOKENS];
    const int64_t left = (tokens - done) * dims;
    copy(last, curve + done * dims, left);
    copy(last_values, values + done * dims, left);
    curve_block(last, last_values, dims, scale, base, last_slope, last_gap);
    copy(slope + done * dims, last_slope, left);
    for (int64_t i = 0; done + i < tokens; ++i) gap[done + i] = last_gap[i];
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
