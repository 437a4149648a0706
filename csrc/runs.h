// Scans and prepared queries for whole calls: how work is cut into tasks. Bindings check arguments, kernels do a task; both ways into a
// scan (an op of its own, or a search from query to hits) come here. The caller has released the interpreter.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

#include "bit_scan/bit_scan.h"
#include "lut_scan/lut_scan.h"
#include "segment_scan/segment_scan.h"

namespace codeword {

// Threads that pay for a pass over so many bytes of codes (a byte counts once for every query that looks at it), of those allowed. Waking
// a worker, or waiting for one that the system has put aside, takes tens of microseconds; 1.5 MB of codes take about 40.
int paying_threads(int workers, double bytes);
void set_thread_bytes(double bytes);  // what pays for a thread; 0: every thread is used, for tests

// Bytes at a 64-byte boundary, not initialised.
struct Scratch {
    std::unique_ptr<uint8_t[]> memory;
    uint8_t* at;
    explicit Scratch(int64_t bytes) : memory(new uint8_t[static_cast<size_t>(bytes) + 64]), at(memory.get()) {
        at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
    }
};

// What queries visit, and where their k best go: spans (queries, probes, 2), coarse (queries, probes), distances and rows (queries, k).
struct Visit {
    const int64_t* spans;
    const float* coarse;
    int64_t queries, probes, k;
    int workers;
    float* distances;
    int64_t* rows;
    // Where queries are not ready yet: makes count from first on ready, and their coarse, on the thread that is about to scan for them.
    const std::function<void(int64_t first, int64_t count)>* prepare = nullptr;

    void ready(int64_t first, int64_t count) const {
        if (prepare) (*prepare)(first, count);
    }
};

struct BitQueries {
    const int8_t* z1;      // (queries, 8 eights)
    const int16_t* z;      // (queries, 32 groups), of one bit (queries, 0)
    const float* scalars;  // (queries, 4)
    bool l2;
};

struct SegmentQueries {
    const int8_t* z1;      // (queries, 8 eights)
    const int16_t* z;      // (queries, 32 groups)
    const float* scalars;  // (queries, 1 + 4 count)
    int64_t groups;
    bool l2;
};

void run_lut_scan(const LutBlocks& blocks, const float* tables, const Visit& visit);
void run_bit_scan(const BitBlocks& blocks, const BitQueries& queries, const Visit& visit);
void run_segment_scan(const SegmentBlocks& blocks, const SegmentQueries& queries, const Visit& visit);

// Rows of queries made ready for bit_scan: see bit_blocks.prepare_reference. A row at a time, so that it is the same in any batch.
struct BitPreparation {
    const float *center, *signs;
    int64_t dim;
    int bits;
    double slack;
    bool l2;

    int64_t eights() const { return (dim + 7) / 8; }
    int64_t width() const { return bits > 1 ? (dim + 31) / 32 * 32 : 0; }
    // Query x (dim) and its norm |x|^2; scratch: 2 dim floats.
    void row(const float* x, float norm, float* scratch, int8_t* z1, int16_t* z, float* scalars) const;
};
float square_norm(const float* x, int64_t dim);  // rounded once

// Where the segments of a plan (segments, 2) lie, into parts (room for SEGMENTS) and blocks; the number of groups of 32 dimensions in the
// segments with more than one bit. op: who complains.
int64_t read_plan(const char* op, const int64_t* plan, int64_t segments, SegmentPart* parts, SegmentBlocks& blocks);

// The same for segment_scan: see segment_blocks.prepare_reference. blocks: where the segments lie (parts, count, eights).
struct SegmentPreparation {
    const int64_t* plan;      // (count, 2): dimensions, bits
    const double* constants;  // (3, count)
    int64_t groups;
    bool l2;
    // z (coded dimensions) of centred (dim); towards: <query, mean>.
    void row(const SegmentBlocks& blocks, const float* z, const float* centred, int64_t dim, float towards, int8_t* z1, int16_t* wide,
             float* scalars) const;
};

// Tables (queries, books, size) of slices (queries, books, dim) and codebooks (books, dim, size): see lut_blocks.tables_reference.
void table_rows(const float* queries, int64_t count, const float* codebooks, int64_t books, int64_t dim, int64_t size, double factor,
                const double* first, float* out);

}  // namespace codeword
