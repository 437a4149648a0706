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

#if defined(__AVX512F__)
// Equal widths: eight bytes of indices at a time, their bits gathered by one pext, or spread by one pdep. Only where these take a cycle,
// as they do on every processor with AVX-512.
constexpr bool GATHERS = true;

template <class T>
CODEWORD_INLINE uint64_t lanes(int64_t width) {
    uint64_t mask = (uint64_t{1} << width) - 1;
    for (unsigned bits = 8 * sizeof(T); bits < 64; bits *= 2) mask |= mask << bits;
    return mask;
}

template <class T>
CODEWORD_INLINE uint64_t pack_equal(const T* from, int64_t width, uint8_t* to, int64_t count) {
    constexpr int EACH = 8 / sizeof(T);
    const uint64_t mask = lanes<T>(width);
    const int64_t bits = EACH * width;  // below 64
    uint64_t buffer = 0, excess = 0;
    int64_t filled = 0, i = 0;
    if constexpr (EACH == 8) {  // whole bytes; a store runs over what the next one writes
        for (; i + 8 + 64 / width + 8 <= count; i += 8, to += width) {
            uint64_t values = load<uint64_t>((const uint8_t*)(from + i));
            excess |= values & ~mask;
            store(to, (uint64_t)_pext_u64(values, mask));
        }
    }
    auto put = [&](uint64_t value, int64_t size) {
        buffer |= value << filled;
        filled += size;
        if (filled >= 64) {
            store(to, buffer);
            to += 8;
            filled -= 64;
            buffer = filled ? value >> (size - filled) : 0;
        }
    };
    for (; i + EACH <= count; i += EACH) {
        uint64_t values = load<uint64_t>((const uint8_t*)(from + i));
        excess |= values & ~mask;
        put(_pext_u64(values, mask), bits);
    }
    for (; i < count; ++i) {
        uint64_t value = (uint64_t)(int64_t)from[i], low = value & ((uint64_t{1} << width) - 1);
        excess |= value ^ low;
        put(low, width);
    }
    for (; filled > 0; filled -= 8, buffer >>= 8) *to++ = (uint8_t)buffer;
    return excess;
}

template <class T>
CODEWORD_INLINE void unpack_equal(const uint8_t* from, const uint8_t* end, int64_t width, T* to, int64_t count) {
    constexpr int EACH = 8 / sizeof(T);
    const uint64_t mask = lanes<T>(width);
    const int64_t bits = EACH * width;
    int64_t i = 0;
    if constexpr (EACH == 8) {
        for (; i + 8 <= count && end - from >= 8; i += 8, from += width)
            store((uint8_t*)(to + i), (uint64_t)_pdep_u64(load<uint64_t>(from), mask));
    }
    uint64_t buffer = 0;
    int64_t left = 0;
    auto get = [&](int64_t size) {
        uint64_t value = buffer;
        if (left < size) {
            uint64_t next = 0;
            int64_t got = end - from >= 8 ? 8 : end - from;
            if (got == 8) next = load<uint64_t>(from);
            else memcpy(&next, from, got);
            from += got;
            value |= next << left;
            int64_t taken = size - left;
            buffer = next >> taken;
            left = got * 8 - taken;
        } else {
            buffer >>= size;
            left -= size;
        }
        return value;
    };
    for (; i + EACH <= count; i += EACH) store((uint8_t*)(to + i), (uint64_t)_pdep_u64(get(bits), mask));
    for (; i < count; ++i) to[i] = (T)(get(width) & ((uint64_t{1} << width) - 1));
}
#else
constexpr bool GATHERS = false;
template <class T>
CODEWORD_INLINE uint64_t pack_equal(const T*, int64_t, uint8_t*, int64_t) { return 0; }
template <class T>
CODEWORD_INLINE void unpack_equal(const uint8_t*, const uint8_t*, int64_t, T*, int64_t) {}
#endif

// Whether pext serves: every width that leaves room in an index, and in a buffer of 64 bits.
template <class T>
CODEWORD_INLINE bool gathers(int64_t width) {
    return GATHERS && width > 0 && width < (int64_t)(8 * sizeof(T)) && width * (int64_t)(8 / sizeof(T)) < 64;
}

// The width of all positions where they are equal, else -1.
CODEWORD_INLINE int64_t common_width(const int64_t* widths, int64_t positions) {
    for (int64_t p = 1; p < positions; ++p)
        if (widths[p] != widths[0]) return -1;
    return positions ? widths[0] : -1;
}

template <class T>
CODEWORD_INLINE bool pack_rows(const T* from, const int64_t* widths, int64_t positions, uint8_t* to, int64_t rows) {
    int64_t count = rows * positions, width = common_width(widths, positions);
    if (gathers<T>(width) && width > 2 && width != 4 && width != 8 && width != 16)
        return pack_equal(from, width, to, count) == 0;
    switch (width) {
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
    int64_t count = rows * positions, width = common_width(widths, positions);
    if (gathers<T>(width) && width != 4 && width != 8 && width != 16) return unpack_equal(from, end, width, to, count);
    switch (width) {
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
