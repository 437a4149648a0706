#include "e8/e8.h"

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int PATTERNS = 256;
constexpr float STEP = 1024;  // a quarter, in units of x
constexpr float NORM = 512;

CODEWORD_INLINE f32v least(f32v a, f32v b) { return a < b ? a : b; }

// Score of every pattern at one shift, signs chosen best: sum |y| p, less twice the least |y| p where the signs of y have the wrong
// parity. All of it integers below 2^24, so fused or not, in any order, it is exact.
CODEWORD_INLINE void scores(const float* size, int negatives, float constant, const E8Tables& t, float* out) {
    f32v y[8];
    for (int i = 0; i < 8; ++i) y[i] = splat(size[i]);
    const float* flip = t.flip[negatives & 1];
    for (int p = 0; p < PATTERNS; p += F32) {
        f32v term = y[0] * load<f32v>(t.pattern[0] + p), low = term, sum = splat(constant) - load<f32v>(t.norm + p) + term;
        for (int i = 1; i < 8; ++i) {
            term = y[i] * load<f32v>(t.pattern[i] + p);
            sum += term;
            low = least(term, low);
        }
        store(out + p, sum - load<f32v>(flip + p) * low);
    }
}

// The lowest byte whose signs and shift give the score `best` with pattern p: all 256 looked at.
int byte_of_all(const float* x, int p, float odd, float best, const E8Tables& t) {
    float point[8];
    for (int i = 0; i < 8; ++i) point[i] = t.pattern[i][p];
    point[7] *= odd;
    for (int b = 0; b < 256; b += F32) {
        f32v dot{}, square{}, shift = load<f32v>(t.shift + b);
        for (int i = 0; i < 8; ++i) {
            f32v c = load<f32v>(t.sign[i] + b) * point[i] + shift;
            dot += c * x[i];
            square += c * c;
        }
        f32v score = dot - square * NORM;
        for (int lane = 0; lane < F32; ++lane)
            if (score[lane] == best) return b + lane;
    }
    return 0;  // not reached: the best score is one of these
}

}  // namespace

void e8_nearest(const int32_t* rows, int64_t count, const E8Tables& t, int64_t* out) {
    alignas(64) float score[2][PATTERNS];
    for (int64_t r = 0; r < count; ++r, rows += 8) {
        float x[8], size[2][8], total = 0;
        int negative[2] = {0, 0};
        bool zero[2] = {false, false};
        for (int i = 0; i < 8; ++i) {
            x[i] = static_cast<float>(rows[i]);
            total += x[i];
        }
        for (int s = 0; s < 2; ++s) {
            for (int i = 0; i < 8; ++i) {
                float y = s ? x[i] + STEP : x[i] - STEP;
                negative[s] |= (y < 0) << i;
                zero[s] |= y == 0;
                size[s][i] = y < 0 ? -y : y;
            }
            scores(size[s], __builtin_popcount(static_cast<unsigned>(negative[s])), (s ? -total : total) - 8 * NORM, t, score[s]);
        }
        f32v top = load<f32v>(score[0]);
        for (int p = 0; p < PATTERNS; p += F32) top = max(max(load<f32v>(score[0] + p), load<f32v>(score[1] + p)), top);
        const float best = highest(top);
        const f32v bests = splat(best);
        int p = -1, s = 0, hits = 0;
        for (int from = 0; from < PATTERNS; from += F32) {
            for (int side = 0; side < 2; ++side) {
                uint32_t mask = any_of(load<f32v>(score[side] + from) == bests);
                if (!mask) continue;
                hits += __builtin_popcount(mask);
                int first = from + __builtin_ctz(mask);
                if (p < 0 || first < p) {
                    p = first;
                    s = side;
                }
            }
        }
        // One pattern, one shift, no entry on a sign's edge: the signs follow, but for the one to flip where the parity is wrong.
        int flipped = -1;
        bool unique = hits == 1 && !zero[s];
        const bool odd = t.flip[0][p] != 0;
        if (unique && t.flip[__builtin_popcount(static_cast<unsigned>(negative[s])) & 1][p] != 0) {
            float low = 1e30f;
            for (int i = 0; i < 8; ++i) {
                float term = size[s][i] * t.pattern[i][p];
                if (term == low) unique = false;
                if (term < low) {
                    low = term;
                    flipped = i;
                    unique = hits == 1 && !zero[s];
                }
            }
        }
        int byte;
        if (unique) {
            byte = negative[s] ^ (flipped >= 0 ? 1 << flipped : 0) ^ (odd ? 128 : 0) ^ (s ? 128 : 0);
        } else {
            byte = byte_of_all(x, p, odd ? -1.0f : 1.0f, best, t);
        }
        out[r] = (static_cast<int64_t>(p) << 8) | byte;
    }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
