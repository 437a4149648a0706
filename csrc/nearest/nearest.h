// Index and squared distance of the nearest codeword; see README.md.
#pragma once
#include <stdint.h>

#include "target.h"

namespace codeword {

// The codebook in 8-bit integers (bytes.h); no groups: not in use.
struct BytesBook {
    int32_t* panels;           // (codes / 8, words, 8): four entries a word, codewords interleaved by eight
    int32_t* starts;           // (codes,) what takes the +128 of the rows away
    float* scales;             // (codes,)
    float* halves;             // (codes,) |b|^2 / 2, infinity behind the last codeword
    float* norms;              // (codes,) upper bounds of |b|
    float* residuals;          // (codes,) and of its residual
    float* group_norms;        // (groups,) the largest of them, and what of the bound depends on the group alone
    float* group_residuals;
    float* group_floors;
    int64_t code_count, codes_per_group, group_count;  // code_count: k up to a multiple of 8
};

// A codebook prepared for the screen. Panels hold the codewords that the vector lanes of one tile work on, groups are consecutive panels
// that share their maxima.
struct NearestBook {
    const float* codebook;   // (k, d)
    const float* tail;       // codewords tail_start..k-1 followed by 8 zeros: the others may be read up to a multiple of 8 entries
    int64_t tail_start;
    const float* center;     // (d,) subtracted from rows and codewords in the screen: any value is right, the middle gives small bounds
    const float* panels;     // (panels, 1 + d, panel width): -|c'|^2/2, then c' entry by entry
    const float* norms;      // (panels,) the largest |c'| of a panel
    const float* groups;     // (groups padded to 16,) the largest |c'| of a group
    int64_t k, d, panel_count, group_count, panels_per_group;
    bool screen;             // false: score every codeword exactly (few rows)
    BytesBook bytes;
};

// How far groups of consecutive codewords moved since the bounds of tracked rows (tracked.h) were right.
struct Moves {
    const float* shifts;       // (groups,) the largest move in each
    int64_t codes_per_group, group_count;
    int64_t most;              // groups scored one by one, at most; beyond it all codewords are screened
};

}  // namespace codeword

CODEWORD_EACH_TARGET(
    // Codewords a panel.
    int64_t nearest_panel();
    // Writes panels start..stop-1 and their norms.
    void nearest_prepare(const float* codebook, const float* center, float* panels, float* norms, int64_t k, int64_t d,
                         int64_t start, int64_t stop);
    // Whether the screen in bytes is worth its preparation, and the preparation of its panels start..stop-1 (scratch: d + 64 bytes).
    bool nearest_bytes(int64_t n, int64_t k, int64_t d);
    void nearest_prepare_bytes(const NearestBook& book, int64_t start, int64_t stop, int8_t* scratch);
    // What the bounds need of every group, once all panels are there.
    void nearest_group_bytes(const NearestBook& book);
    // Bytes of scratch memory, zeroed, aligned to 64, that the calls of nearest_rows on one thread need.
    int64_t nearest_scratch(const NearestBook& book);
    // Rows start..stop-1 of x (n, d). bounds: null, or (n, groups) for the bounds that tracked rows need.
    void nearest_rows(const NearestBook& book, const float* x, int64_t* indices, float* distances, float* bounds, void* scratch,
                      int64_t start, int64_t stop);
    // Codewords a group of these bounds.
    int64_t nearest_group(const NearestBook& book);
    // The same, from the indices and bounds of the rows before the codebook moved, which become those of now.
    int64_t nearest_track_scratch(const NearestBook& book);
    void nearest_track(const NearestBook& book, const Moves& moves, const float* x, int64_t* indices, float* distances, float* bounds,
                       void* scratch, int64_t start, int64_t stop);
    // Whether nearest_narrow_rows is the faster way.
    bool nearest_narrow(int64_t k, int64_t d);
    // The codebook turned to (d, width), width >= k a multiple of 16, padded with infinity.
    void nearest_turn(const float* codebook, float* turned, int64_t width, int64_t k, int64_t d);
    // The same result as nearest_rows for a codebook without NaN.
    void nearest_narrow_rows(const float* codebook, const float* turned, int64_t width, int64_t k, int64_t d, const float* x,
                             int64_t* indices, float* distances, int64_t start, int64_t stop);
)
