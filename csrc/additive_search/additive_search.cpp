// One step: all states times all codewords of one position, the best ``beam`` of them stay. README.md has the definition.
#include "additive_search/additive_search.h"

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

constexpr int PARTS = 16 / F32;          // vectors in 16 entries
constexpr int WIDE = PARTS < 4 ? 8 : PARTS;  // vectors summed at once
const double INFINITE = __builtin_inf();

CODEWORD_INLINE uint64_t mixed(int64_t position, int32_t code) {
    uint64_t z = ((uint64_t)position << 32 | (uint32_t)code) * 0x9E3779B97F4A7C15ull + 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

struct Scratch {
    double* cost;     // (beam,) of the list being filled, ascending
    uint64_t* keys;   // (beam,) of the states, without the position at hand
    int32_t* parent;  // (beam,)
    int32_t* code;    // (beam,)
    int32_t* old;     // (beam, codebooks) the states
    float* sums;      // (width,)

    int64_t layout(const AdditiveSearch& s, char* at) {
        int64_t begin = (int64_t)at;
        auto round = [](int64_t bytes) { return (bytes + 63) & ~int64_t{63}; };
        sums = (float*)at;
        at += round(s.width * 4);
        cost = (double*)at;
        at += round(s.beam * 8);
        keys = (uint64_t*)at;
        at += round(s.beam * 8);
        parent = (int32_t*)at;
        at += round(s.beam * 4);
        code = (int32_t*)at;
        at += round(s.beam * 4);
        old = (int32_t*)at;
        at += round(s.beam * s.codebooks * 4);
        return (int64_t)at - begin;
    }
};

// The best states so far, ascending, the earlier one first among equals.
struct List {
    double* cost;
    int32_t* parent;
    int32_t* code;
    int64_t size, count;
    double limit;  // nothing at or above it is taken

    double worst() const { return count < size ? limit : cost[size - 1]; }

    void insert(double value, int64_t from, int64_t k) {
        int64_t at = count < size ? count++ : size - 1;
        for (; at > 0 && value < cost[at - 1]; --at) {
            cost[at] = cost[at - 1];
            parent[at] = parent[at - 1];
            code[at] = code[at - 1];
        }
        cost[at] = value;
        parent[at] = (int32_t)from;
        code[at] = (int32_t)k;
    }
};

// sums[k] = term[k] + gram rows of the codes, in ascending order of the other positions.
template <int V>
CODEWORD_INLINE void add_rows(const float* term, const float* const* rows, int64_t count, float* sums, int64_t at) {
    f32v sum[V];
    CODEWORD_UNROLL
    for (int v = 0; v < V; ++v) sum[v] = load<f32v>(term + at + v * F32);
    for (int64_t r = 0; r < count; ++r) {
        const float* row = rows[r] + at;
        CODEWORD_UNROLL
        for (int v = 0; v < V; ++v) sum[v] += load<f32v>(row + v * F32);
    }
    CODEWORD_UNROLL
    for (int v = 0; v < V; ++v) store(sums + at + v * F32, sum[v]);
}

CODEWORD_INLINE void field(const AdditiveSearch& s, const float* term, const float* slice, const int32_t* codes, int64_t m, int64_t filled,
                           float* sums) {
    const float* rows[ADDITIVE_MOST];
    int64_t count = 0;
    for (int64_t l = 0; l < filled; ++l)
        if (l != m) rows[count++] = slice + (l * s.size + codes[l]) * s.width;
    int64_t at = 0;
    for (; at + WIDE * F32 <= s.width; at += WIDE * F32) add_rows<WIDE>(term, rows, count, sums, at);
    for (; at < s.width; at += PARTS * F32) add_rows<PARTS>(term, rows, count, sums, at);
}

// No smaller than any float a with base + a < worst in float64.
CODEWORD_INLINE float ceiling(double base, double worst) {
    double room = worst - base;
    room += 1e-15 * (__builtin_fabs(worst) + __builtin_fabs(base));
    return (float)(room + 1e-6 * __builtin_fabs(room) + 1e-37);
}

CODEWORD_INLINE void offer(List& list, const float* sums, int64_t size, int64_t width, double base, int64_t from) {
    double worst = list.worst();
    f32v limit = splat(worst < INFINITE ? ceiling(base, worst) : __builtin_inff());
    for (int64_t at = 0; at < width; at += F32) {
        uint32_t hits = any_of(load<f32v>(sums + at) <= limit);
        for (; hits; hits &= hits - 1) {
            int64_t k = at + __builtin_ctz(hits);
            if (k >= size) break;  // padding, whatever it holds
            double value = base + (double)sums[k];
            if (!(value < worst)) continue;
            list.insert(value, from, k);
            worst = list.worst();
            if (worst < INFINITE) limit = splat(ceiling(base, worst));
        }
    }
}

CODEWORD_INLINE bool same_rest(const int32_t* a, const int32_t* b, int64_t count, int64_t m) {
    for (int64_t l = 0; l < count; ++l)
        if (l != m && a[l] != b[l]) return false;
    return true;
}

// The children of all states below the list's limit.
CODEWORD_INLINE void children(const AdditiveSearch& s, const Scratch& w, List& list, const float* term, const float* slice,
                              const int32_t* codes, const double* costs, int64_t states, int64_t m, int64_t filled, bool known) {
    int64_t width = s.codebooks;
    for (int64_t h = 0; h < states; ++h) {
        const int32_t* mine = codes + h * width;
        double base = costs[h];
        if (known) {
            uint64_t key = 0;
            for (int64_t l = 0; l < width; ++l)
                if (l != m) key += mixed(l, mine[l]);
            w.keys[h] = key;
            bool seen = false;  // a better state differs at m alone: it has the same children
            for (int64_t g = 0; g < h && !seen; ++g) seen = w.keys[g] == key && same_rest(codes + g * width, mine, width, m);
            if (seen) continue;
        }
        field(s, term, slice, mine, m, filled, w.sums);
        if (known) base -= (double)w.sums[mine[m]];
        offer(list, w.sums, s.size, s.width, base, h);
    }
}

// One row at position m; states -> how many there are now.
CODEWORD_INLINE int64_t step(const AdditiveSearch& s, const Scratch& w, const float* term, const float* slice, int32_t* codes, double* costs,
                             int64_t states, int64_t m, int64_t filled, bool known) {
    int64_t width = s.codebooks;
    List list{w.cost, w.parent, w.code, s.beam, 0, INFINITE};
    // Every state is a child as well, up to rounding, so a full beam bounds what can enter. Where rounding says otherwise: once more.
    if (known && states == s.beam) list.limit = costs[states - 1] + 1e-6 * __builtin_fabs(costs[states - 1]) + 1e-30;
    children(s, w, list, term, slice, codes, costs, states, m, filled, known);
    if (list.count < list.size && list.limit < INFINITE) {
        list.count = 0;
        list.limit = INFINITE;
        children(s, w, list, term, slice, codes, costs, states, m, filled, known);
    }
    if (!list.count) return states;  // nothing but NaN
    memcpy(w.old, codes, states * width * sizeof(int32_t));
    for (int64_t i = 0; i < list.count; ++i) {
        memcpy(codes + i * width, w.old + list.parent[i] * width, width * sizeof(int32_t));
        codes[i * width + m] = list.code[i];
        costs[i] = list.cost[i];
    }
    return list.count;
}

}  // namespace

int64_t additive_scratch(const AdditiveSearch& search) {
    Scratch w;
    return w.layout(search, nullptr) + (ADDITIVE_ROWS * 8);
}

void additive_search(const AdditiveSearch& s, int32_t* codes, double* costs, void* scratch, int64_t start, int64_t stop) {
    Scratch w;
    int64_t* states = (int64_t*)scratch;
    w.layout(s, (char*)scratch + ADDITIVE_ROWS * 8);
    int64_t offset = s.codebooks - s.positions, row_codes = s.beam * s.codebooks;
    for (int64_t r = start; r < stop; ++r) states[r - start] = s.states;
    for (int64_t t = 0; t < s.sweeps * s.positions; ++t) {
        int64_t p = t % s.positions, m = offset + p;
        bool again = t >= s.positions;
        int64_t filled = again || s.assigned > m ? s.codebooks : m;
        for (int64_t r = start; r < stop; ++r)
            states[r - start] = step(s, w, s.terms + (r * s.positions + p) * s.width, s.gram + p * s.codebooks * s.size * s.width,
                                     codes + r * row_codes, costs + r * s.beam, states[r - start], m, filled, again || m < s.assigned);
    }
    for (int64_t r = start; r < stop; ++r)  // fewer states than asked for: the rest repeats the best one at cost infinity
        for (int64_t h = states[r - start]; h < s.beam; ++h) {
            memcpy(codes + r * row_codes + h * s.codebooks, codes + r * row_codes, s.codebooks * sizeof(int32_t));
            costs[r * s.beam + h] = INFINITE;
        }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
