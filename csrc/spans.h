// The row ranges that a query visits, as bindings of scans see them.
#pragma once
#include <cstring>
#include <string>

#include "arrays.h"

namespace codeword {

// Sums over dimensions are kept in 32 bits.
inline void check_width(const char* op, int64_t dim) {
    if (dim > 1 << 20) refuse(std::string(op) + " got " + std::to_string(dim) + " dimensions; at most 2^20 are allowed");
}

// Spans must lie in 0..rows and start at multiples of 32.
inline void check_spans(const char* op, const int64_t* ranges, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; ++i) {
        int64_t start = ranges[2 * i], stop = ranges[2 * i + 1];
        if (start < stop && (start < 0 || stop > rows || start % 32))
            refuse(std::string(op) + " got the span " + std::to_string(start) + ".." + std::to_string(stop) + "; 0.." + std::to_string(rows) +
                   " from a multiple of 32 is allowed");
    }
}

// Queries one after another that visit the same spans: how many of the first `most`.
inline int64_t alike(const int64_t* spans, int64_t probes, int64_t queries, int64_t most) {
    int64_t n = 1;
    while (n < queries && n < most && !std::memcmp(spans, spans + 2 * probes * n, sizeof(int64_t) * 2 * static_cast<size_t>(probes))) ++n;
    return n;
}

}  // namespace codeword
