// Little-endian machines only, like every target of this library.
#include "pack/pack.h"

#include "simd.h"

namespace codeword {
namespace CODEWORD_TARGET {
namespace {

// The general case: a 64-bit buffer that is written out when full. Widths 0..63.
template <class T>
CODEWORD_INLINE uint64_t pack_any(const T* from, const int64_t* widths, int64_t positions, uint8_t* to, int64_t rows) {
    uint64_t buffer = 0, excess = 0;
    int64_t filled = 0;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t p = 0; p < positions; ++p) {
            uint64_t value = (uint64_t)(int64_t)*from++;
            int64_t width = widths[p];
            excess |= value >> width;
            buffer |= value << filled;
            filled += width;
            if (filled >= 64) {
                store(to, buffer);
                to += 8;
                filled -= 64;
                buffer = filled ? value >> (width - filled) : 0;
            }
        }
    }
    for (; filled > 0; filled -= 8, buffer >>= 8) *to++ = (uint8_t)buffer;
    return excess;
}

template <class T>
CODEWORD_INLINE void unpack_any(const uint8_t* from, const uint8_t* end, const int64_t* widths, int64_t positions, T* to, int64_t rows) {
    uint64_t buffer = 0;
    int64_t left = 0;  // bits in the buffer
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t p = 0; p < positions; ++p) {
            int64_t width = widths[p];
            uint64_t value = buffer;
            if (left < width) {
                uint64_t next = 0;
                if (end - from >= 8) next = load<uint64_t>(from);
                else memcpy(&next, from, end - from);
                int64_t got = end - from >= 8 ? 8 : end - from;
                from += got;
                value |= next << left;
                int64_t taken = width - left;
                buffer = next >> taken;  // taken >= 1, and < 64 as widths are
                left = got * 8 - taken;
            } else {
                buffer >>= width;
                left -= width;
            }
            *to++ = (T)(value & ((uint64_t{1} << width) - 1));
        }
    }
}

// count values of WIDTH bits, WIDTH in {1, 2, 4}: a byte holds a whole number of them. Plain loops, which compilers turn into vectors.
template <int WIDTH, class T>
CODEWORD_INLINE uint64_t pack_parts(const T* from, uint8_t* to, int64_t count) {
    constexpr int PARTS_A_BYTE = 8 / WIDTH;
    T all = 0;
    int64_t bytes = count / PARTS_A_BYTE;
    for (int64_t i = 0; i < bytes; ++i) {
        T byte = 0;
        CODEWORD_UNROLL
        for (int part = 0; part < PARTS_A_BYTE; ++part) {
            T value = from[i * PARTS_A_BYTE + part];
            all |= value;
            byte |= (T)(value << (part * WIDTH));
        }
        to[i] = (uint8_t)byte;
    }
    uint8_t byte = 0;
    for (int64_t i = bytes * PARTS_A_BYTE; i < count; ++i) {
        all |= from[i];
        byte |= (uint8_t)((uint64_t)from[i] << ((i - bytes * PARTS_A_BYTE) * WIDTH));
    }
    if (bytes * PARTS_A_BYTE < count) to[bytes] = byte;
    return (uint64_t)(int64_t)all >> WIDTH;
}

template <int WIDTH, class T>
CODEWORD_INLINE void unpack_parts(const uint8_t* from, T* to, int64_t count) {
    constexpr int PARTS_A_BYTE = 8 / WIDTH;
    constexpr uint8_t MASK = (1 << WIDTH) - 1;
    int64_t bytes = count / PARTS_A_BYTE;
    for (int64_t i = 0; i < bytes; ++i) {
        CODEWORD_UNROLL
        for (int part = 0; part < PARTS_A_BYTE; ++part) to[i * PARTS_A_BYTE + part] = (T)((from[i] >> (part * WIDTH)) & MASK);
    }
    for (int64_t i = bytes * PARTS_A_BYTE; i < count; ++i) to[i] = (T)((from[bytes] >> ((i - bytes * PARTS_A_BYTE) * WIDTH)) & MASK);
}

// count values that fill whole integers of type U.
template <class U, class T>
CODEWORD_INLINE uint64_t pack_whole(const T* from, uint8_t* to, int64_t count) {
    T all = 0;
    for (int64_t i = 0; i < count; ++i) {
        all |= from[i];
        U value = (U)from[i];
        store(to + i * sizeof(U), value);
    }
    // A signed index that is negative has its upper bits set; one no wider than U always fits.
    return (uint64_t)(int64_t)all >> (8 * sizeof(U));
}

template <class U, class T>
CODEWORD_INLINE void unpack_whole(const uint8_t* from, T* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = (T)load<U>(from + i * sizeof(U));
}

// The width of all positions where they are equal, else -1.
CODEWORD_INLINE int64_t common_width(const int64_t* widths, int64_t positions) {
    for (int64_t p = 1; p < positions; ++p)
        if (widths[p] != widths[0]) return -1;
    return positions ? widths[0] : -1;
}

template <class T>
CODEWORD_INLINE bool pack_rows(const T* from, const int64_t* widths, int64_t positions, uint8_t* to, int64_t rows) {
    int64_t count = rows * positions;
    switch (common_width(widths, positions)) {
        case 1: return pack_parts<1>(from, to, count) == 0;
        case 2: return pack_parts<2>(from, to, count) == 0;
        case 4: return pack_parts<4>(from, to, count) == 0;
        case 8: return pack_whole<uint8_t>(from, to, count) == 0;
        case 16: return pack_whole<uint16_t>(from, to, count) == 0;
        default: return pack_any(from, widths, positions, to, rows) == 0;
    }
}

template <class T>
CODEWORD_INLINE void unpack_rows(const uint8_t* from, const uint8_t* end, const int64_t* widths, int64_t positions, T* to, int64_t rows) {
    int64_t count = rows * positions;
    switch (common_width(widths, positions)) {
        case 1: return unpack_parts<1>(from, to, count);
        case 2: return unpack_parts<2>(from, to, count);
        case 4: return unpack_parts<4>(from, to, count);
        case 8: return unpack_whole<uint8_t>(from, to, count);
        case 16: return unpack_whole<uint16_t>(from, to, count);
        default: return unpack_any(from, end, widths, positions, to, rows);
    }
}

}  // namespace

bool pack(const void* indices, int kind, const int64_t* widths, int64_t positions, int64_t row_bits, uint8_t* bytes,
          int64_t start, int64_t stop) {
    uint8_t* to = bytes + start / 8 * row_bits;
    int64_t first = start * positions, rows = stop - start;
    switch (kind) {
        case 1: return pack_rows((const uint8_t*)indices + first, widths, positions, to, rows);
        case 2: return pack_rows((const uint16_t*)indices + first, widths, positions, to, rows);
        case 4: return pack_rows((const int32_t*)indices + first, widths, positions, to, rows);
        default: return pack_rows((const int64_t*)indices + first, widths, positions, to, rows);
    }
}

void unpack(const uint8_t* bytes, int64_t size, const int64_t* widths, int64_t positions, int64_t row_bits, void* indices, int kind,
            int64_t start, int64_t stop) {
    const uint8_t *from = bytes + start / 8 * row_bits, *end = bytes + size;
    int64_t first = start * positions, rows = stop - start;
    switch (kind) {
        case 1: return unpack_rows(from, end, widths, positions, (uint8_t*)indices + first, rows);
        case 2: return unpack_rows(from, end, widths, positions, (uint16_t*)indices + first, rows);
        case 4: return unpack_rows(from, end, widths, positions, (int32_t*)indices + first, rows);
        default: return unpack_rows(from, end, widths, positions, (int64_t*)indices + first, rows);
    }
}

}  // namespace CODEWORD_TARGET
}  // namespace codeword
