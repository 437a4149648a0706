// The module codeword._native: checks the arrays, cuts the work into chunks, releases the GIL, runs the kernel that suits this processor.
//
// Outputs are written into arrays the caller made. Chunks have a fixed number of rows, so results do not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>
#include <optional>
#include <vector>

#include "arrays.h"
#include "bindings_search.h"
#include "bindings_e8.h"
#include "bindings_fsq.h"
#include "bindings_pyramid.h"
#include "hadamard/hadamard.h"
#include "isa.h"
#include "nearest/nearest.h"
#include "pack/pack.h"
#include "pool.h"
#include "project/project.h"
#include "rotate/rotate.h"
#include "runs.h"
#include "segment_sum/segment_sum.h"

namespace codeword {
namespace {

int64_t chunks_of(int64_t items, int64_t size) { return (items + size - 1) / size; }

// Rows a chunk: enough that taking it costs nothing beside the work, a multiple of 8.
int64_t rows_for(int64_t work_per_row) {
    int64_t rows = (int64_t{1} << 16) / std::max<int64_t>(work_per_row, 1);
    return std::max<int64_t>(8, rows & ~int64_t{7});
}

// body(start, stop, slot) over 0..items-1 in chunks of size.
template <class Body>
void ranges(int64_t items, int64_t size, int num_threads, Body&& body) {
    parallel(chunks_of(items, size), num_threads,
             [&](int64_t chunk, int slot) { body(chunk * size, std::min(items, (chunk + 1) * size), slot); });
}

// Memory for kernels: a cache line's alignment, uninitialised. bad_alloc becomes Python's MemoryError.
template <class T>
class Buffer {
public:
    explicit Buffer(int64_t count)
        : data_(static_cast<T*>(::operator new(static_cast<size_t>(std::max<int64_t>(64, product(count, sizeof(T)))), std::align_val_t{64}))) {}
    ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* data() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    T* data_;
};

// ------------------------------------------------------------------ nearest

// A point in the middle of the codewords that no single outlier moves: entry by entry the median of the means of three samples.
void middle(const float* codebook, int64_t k, int64_t d, float* center) {
    constexpr int64_t SAMPLE = 1024;
    int64_t step = std::max<int64_t>(1, k / (3 * SAMPLE));
    std::vector<double> sums(3 * d);
    double counts[3] = {};
    for (int64_t code = 0, i = 0; code < k; code += step, ++i) {
        double* sum = sums.data() + i % 3 * d;
        for (int64_t j = 0; j < d; ++j) sum[j] += codebook[code * d + j];
        ++counts[i % 3];
    }
    for (int64_t j = 0; j < d; ++j) {
        double a = sums[j] / counts[0], b = k > 1 ? sums[d + j] / counts[1] : a, c = k > 2 ? sums[2 * d + j] / counts[2] : a;
        center[j] = static_cast<float>(std::max(std::min(a, b), std::min(std::max(a, b), c)));
    }
}

bool has_nan(const float* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (values[i] != values[i]) return true;
    return false;
}

// What the screen in bytes needs of a codebook.
class BytesCodebook {
public:
    static constexpr int64_t BLOCK = 8, GROUPS = 1024;  // codewords a panel; groups whose maxima stay in the cache

    static int64_t group_codes(int64_t k) { return BLOCK * chunks_of(chunks_of(k, BLOCK), GROUPS); }

    void prepare(NearestBook& book, int num_threads) {
        int64_t panels = chunks_of(book.k, BLOCK), codes = panels * BLOCK, words = chunks_of(book.d, 4);
        int64_t each = group_codes(book.k), groups = chunks_of(codes, each);
        panels_.emplace(codes * words);
        starts_.emplace(codes);
        values_.emplace(4 * codes + 3 * groups);
        float* at = values_->data();
        book.bytes = {panels_->data(), starts_->data(), at,         at + codes, at + 2 * codes, at + 3 * codes, at + 4 * codes,
                      at + 4 * codes + groups, at + 4 * codes + 2 * groups, codes, each, groups};
        auto round = CODEWORD_PICK(nearest_prepare_bytes);
        const int64_t room = book.d + 64;
        Buffer<int8_t> rows(product(room, num_threads));
        ranges(panels, std::max<int64_t>(8, chunks_of(panels, 64)), num_threads,
               [&](int64_t start, int64_t stop, int slot) { round(book, start, stop, rows.data() + room * slot); });
        CODEWORD_PICK(nearest_group_bytes)(book);
    }

private:
    std::optional<Buffer<int32_t>> panels_, starts_;
    std::optional<Buffer<float>> values_;
};

// Narrow rows meet every codeword; see narrow.h.
void nearest_narrow(const float* x, const float* codebook, int64_t* indices, float* distances, int64_t n, int64_t k, int64_t d, int count) {
    if (has_nan(codebook, k * d)) {
        std::fill_n(indices, n, 0);
        std::fill_n(distances, n, NAN);
        return;
    }
    auto kernel = CODEWORD_PICK(nearest_narrow_rows);
    int64_t width = chunks_of(k, 16) * 16;
    Buffer<float> turned(width * d);
    CODEWORD_PICK(nearest_turn)(codebook, turned.data(), width, k, d);
    ranges(n, std::max<int64_t>(256, rows_for(k * d / 16)), count, [&](int64_t start, int64_t stop, int) {
        kernel(codebook, turned.data(), width, k, d, x, indices, distances, start, stop);
    });
}

// A codebook prepared for n rows.
class Codebook {
public:
    NearestBook book{};
    bool nan = false;  // a codebook with NaN has no nearest codeword: all rows get index 0 and distance NaN

    Codebook(const float* codebook, int64_t n, int64_t k, int64_t d, int num_threads)
        : tail_(std::min(k, 8 / std::max<int64_t>(d, 1) + 1) * d + 8) {
        book.codebook = codebook;
        book.k = k;
        book.d = d;
        // Preparing the panels costs about as much as four exactly scored rows.
        book.screen = n > 4 && k > 1;
        int64_t tail = std::min(k, 8 / std::max<int64_t>(d, 1) + 1);
        std::copy(codebook + (k - tail) * d, codebook + k * d, tail_.data());
        std::fill_n(tail_.data() + tail * d, 8, 0.0f);
        book.tail_start = k - tail;
        book.tail = tail_.data();
        bool suspicious = !book.screen || !floats(num_threads);
        nan = suspicious && has_nan(codebook, k * d);
        if (!suspicious && CODEWORD_PICK(nearest_bytes)(n, k, d)) bytes_.prepare(book, num_threads);
    }

private:
    // False where some codeword is too large for the screen, infinite or NaN.
    bool floats(int num_threads) {
        int64_t width = CODEWORD_PICK(nearest_panel)(), k = book.k, d = book.d;
        book.panel_count = chunks_of(k, width);
        book.panels_per_group = std::max<int64_t>(1, chunks_of(book.panel_count, 64));
        book.group_count = chunks_of(book.panel_count, book.panels_per_group);
        center_.emplace(d), panels_.emplace(book.panel_count * width * (d + 1)), norms_.emplace(book.panel_count);
        groups_.emplace(book.group_count + 16);
        float *center = center_->data(), *panels = panels_->data(), *norms = norms_->data(), *groups = groups_->data();
        book.center = center, book.panels = panels, book.norms = norms, book.groups = groups;
        middle(book.codebook, k, d, center);
        auto prepare = CODEWORD_PICK(nearest_prepare);
        ranges(book.panel_count, 16, num_threads, [&](int64_t start, int64_t stop, int) {
            prepare(book.codebook, center, panels, norms, k, d, start, stop);
        });
        std::fill_n(groups, book.group_count + 16, 0.0f);
        for (int64_t p = 0; p < book.panel_count; ++p) {
            float& group = groups[p / book.panels_per_group];
            group = std::max(group, norms[p]);
        }
        return std::all_of(norms, norms + book.panel_count, [](float v) { return v < INFINITY; });
    }

    Buffer<float> tail_;
    std::optional<Buffer<float>> center_, panels_, norms_, groups_;
    BytesCodebook bytes_;
};

// body(start, stop, scratch) over n rows, each thread with zeroed memory of its own.
template <class Body>
void row_chunks(int64_t n, int64_t rows, int64_t bytes, int count, Body&& body) {
    bytes = (bytes + 63) & ~int64_t{63};
    count = static_cast<int>(std::min<int64_t>(count, std::max<int64_t>(1, chunks_of(n, rows))));
    Buffer<char> scratch(bytes * count);
    std::fill_n(scratch.data(), bytes * count, char{0});
    ranges(n, rows, count, [&](int64_t start, int64_t stop, int slot) { body(start, stop, scratch.data() + slot * bytes); });
}

void nearest(In x_, In codebook_, Out indices_, Out distances_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("x", x_, 0), k = size("codebook", codebook_, 0), d = size("codebook", codebook_, 1);
    const float* x = in<float>("x", x_, {n, d});
    const float* codebook = in<float>("codebook", codebook_, {k, d});
    int64_t* indices = out<int64_t>("indices", indices_, {n});
    float* distances = out<float>("distances", distances_, {n});
    int count = threads(num_threads);
    if (k < 1) refuse("codebook is empty; at least one codeword is needed");
    auto kernel = CODEWORD_PICK(nearest_rows);
    bool narrow = CODEWORD_PICK(nearest_narrow)(k, d);
    nb::gil_scoped_release release;

    if (narrow) return nearest_narrow(x, codebook, indices, distances, n, k, d, count);
    Codebook prepared(codebook, n, k, d, count);
    const NearestBook& book = prepared.book;
    if (prepared.nan) {
        std::fill_n(indices, n, 0);
        std::fill_n(distances, n, NAN);
        return;
    }
    int64_t rows = book.screen ? std::max<int64_t>(192, rows_for(k * d / 8)) : 1;
    row_chunks(n, rows, CODEWORD_PICK(nearest_scratch)(book), count, [&](int64_t start, int64_t stop, char* scratch) {
        kernel(book, x, indices, distances, nullptr, scratch, start, stop);
    });
}

// Codewords a group of the bounds of tracked rows, 0 where there is no tracking. As many rows as would use everything.
constexpr int64_t MANY = int64_t{1} << 40;

int64_t nearest_group_codes(int64_t k, int64_t d) {
    if (k < 128 || d < 13 || CODEWORD_PICK(nearest_narrow)(k, d)) return 0;
    NearestBook book{};
    int64_t width = CODEWORD_PICK(nearest_panel)();
    book.panels_per_group = std::max<int64_t>(1, chunks_of(chunks_of(k, width), 64));
    if (CODEWORD_PICK(nearest_bytes)(MANY, k, d)) {
        book.bytes.group_count = 1;
        book.bytes.codes_per_group = BytesCodebook::group_codes(k);
    }
    return CODEWORD_PICK(nearest_group)(book);
}

// Whether the bounds repay what keeping them costs, over the 25 steps of a k-means, as measured on embeddings and pixels: by the products
// of a row, which they save some of.
bool nearest_tracking_pays(int64_t k, int64_t d) {
    int64_t least = CODEWORD_PICK(nearest_bytes)(MANY, k, d) ? 1 << 17 : 1 << 14;
    return nearest_group_codes(k, d) && k >= (least + d - 1) / d;
}

// nearest for rows whose indices and bounds of the groups are known from before the codebook moved by shifts; none: for new rows.
// False, with nothing done, for a codebook whose values are too large or not finite.
bool nearest_tracked(In x_, In codebook_, std::optional<In> shifts_, Out indices_, Out distances_, Out bounds_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("x", x_, 0), k = size("codebook", codebook_, 0), d = size("codebook", codebook_, 1);
    int64_t each = nearest_group_codes(k, d);
    if (each == 0) refuse("codebook of " + std::to_string(k) + " codewords and width " + std::to_string(d) + " is not tracked");
    int64_t groups = chunks_of(k, each);
    const float* x = in<float>("x", x_, {n, d});
    const float* codebook = in<float>("codebook", codebook_, {k, d});
    const float* shifts = shifts_ ? in<float>("shifts", *shifts_, {groups}) : nullptr;
    int64_t* indices = out<int64_t>("indices", indices_, {n});
    float* distances = out<float>("distances", distances_, {n});
    float* bounds = out<float>("bounds", bounds_, {n, groups});
    int count = threads(num_threads);
    for (int64_t i = 0; shifts && i < n; ++i)
        if (indices[i] < 0 || indices[i] >= k)
            refuse("indices has " + std::to_string(indices[i]) + "; 0.." + std::to_string(k - 1) + " are allowed");
    auto first = CODEWORD_PICK(nearest_rows);
    auto track = CODEWORD_PICK(nearest_track);
    nb::gil_scoped_release release;

    Codebook prepared(codebook, MANY, k, d, count);
    const NearestBook& book = prepared.book;
    if (prepared.nan || CODEWORD_PICK(nearest_group)(book) != each) return false;
    // The screen of all codewords shares every load of a codeword among rows: it has this many times the speed of scoring one by one.
    int64_t faster = book.bytes.group_count ? 16 : 4;
    Moves moves = {shifts, each, groups, std::max<int64_t>(1, k * d / (each * (faster * d + 160)))};
    int64_t rows = std::max<int64_t>(192, rows_for(k * d / 8));
    row_chunks(n, rows, CODEWORD_PICK(nearest_track_scratch)(book), count, [&](int64_t start, int64_t stop, char* scratch) {
        if (shifts) track(book, moves, x, indices, distances, bounds, scratch, start, stop);
        else first(book, x, indices, distances, bounds, scratch, start, stop);
    });
    return true;
}

// ------------------------------------------------------------------ project

void project(In x_, In matrix_, Out out_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("x", x_, 0), m = size("matrix", matrix_, 0), d = size("matrix", matrix_, 1);
    const float* x = in<float>("x", x_, {n, d});
    const float* matrix = in<float>("matrix", matrix_, {m, d});
    float* to = out<float>("out", out_, {n, m});
    int count = threads(num_threads);
    int64_t width = CODEWORD_PICK(project_panel)();
    auto one = CODEWORD_PICK(project_one);
    auto prepare = CODEWORD_PICK(project_prepare);
    auto scratch_size = CODEWORD_PICK(project_scratch);
    auto kernel = CODEWORD_PICK(project_rows);
    nb::gil_scoped_release release;

    if (n <= 3) {
        for (int64_t row = 0; row < n; ++row)
            ranges(m, rows_for(d), count, [&](int64_t start, int64_t stop, int) { one(x + row * d, matrix, to + row * m, d, start, stop); });
        return;
    }
    int64_t panel_count = chunks_of(m, width), rows = std::max<int64_t>(48, rows_for(m * d / 4));
    count = static_cast<int>(std::min<int64_t>(count, std::max(chunks_of(n, rows), chunks_of(panel_count, 16))));
    Buffer<double> panels(panel_count * width * d);
    int64_t entries = (scratch_size(d) + 7) & ~int64_t{7};
    Buffer<double> scratch(entries * std::max(1, count));
    ranges(panel_count, 16, count, [&](int64_t start, int64_t stop, int) { prepare(matrix, panels.data(), m, d, start, stop); });
    ranges(n, rows, count, [&](int64_t start, int64_t stop, int slot) {
        kernel(x, panels.data(), to, m, d, scratch.data() + slot * entries, start, stop);
    });
}

// ------------------------------------------------------------------ hadamard, rotate

float orthonormal(int64_t width) { return static_cast<float>(1 / std::sqrt(static_cast<double>(width))); }

void hadamard(In x_, Out out_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("x", x_, 0), width = size("x", x_, 1);
    if (width < 1 || (width & (width - 1))) refuse("hadamard got width " + std::to_string(width) + "; a power of two is needed");
    const float* x = in<float>("x", x_, {n, width});
    float* to = out<float>("out", out_, {n, width});
    int count = threads(num_threads);
    auto kernel = CODEWORD_PICK(hadamard);
    nb::gil_scoped_release release;
    ranges(n, rows_for(8 * width), count,
           [&](int64_t start, int64_t stop, int) { kernel(x, to, width, orthonormal(width), start, stop); });
}

void rotate(In x_, In signs_, Out out_, bool inverse, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("x", x_, 0), width = size("x", x_, 1);
    if (width < 1) refuse("rotate got width 0; at least 1 is needed");
    const float* x = in<float>("x", x_, {n, width});
    const float* signs = in<float>("signs", signs_, {4, width});
    float* to = out<float>("out", out_, {n, width});
    int count = threads(num_threads);
    auto kernel = CODEWORD_PICK(rotate);
    nb::gil_scoped_release release;
    int64_t largest = 1;
    while (largest <= width / 2) largest *= 2;
    ranges(n, rows_for(32 * width), count, [&](int64_t start, int64_t stop, int) {
        kernel(x, signs, to, width, largest, orthonormal(largest), inverse, start, stop);
    });
}

// ------------------------------------------------------------------ pack, unpack

// Bits of a row; every width must be 0..63.
int64_t row_bits(const int64_t* widths, int64_t positions) {
    int64_t sum = 0;
    for (int64_t p = 0; p < positions; ++p) {
        if (widths[p] < 0 || widths[p] > 63) refuse("widths has " + std::to_string(widths[p]) + "; 0..63 are allowed");
        sum += widths[p];
    }
    return sum;
}

template <class Pointer, class Array>
Pointer index_data(const Array& array, int64_t rows, int64_t positions, int& kind) {
    if (array.dtype() == nb::dtype<uint8_t>()) check<uint8_t>("indices", array, {rows, positions}), kind = 1;
    else if (array.dtype() == nb::dtype<uint16_t>()) check<uint16_t>("indices", array, {rows, positions}), kind = 2;
    else if (array.dtype() == nb::dtype<int32_t>()) check<int32_t>("indices", array, {rows, positions}), kind = 4;
    else if (array.dtype() == nb::dtype<int64_t>()) check<int64_t>("indices", array, {rows, positions}), kind = 8;
    else refuse("indices has another dtype than the uint8, uint16, int32 or int64 needed");
    return static_cast<Pointer>(array.data());
}

// The bytes of rows of row bits, whose product is known not to overflow afterwards.
int64_t stream_bytes(int64_t rows, int64_t bits) {
    int64_t total = product(rows, bits);
    return total / 8 + (total % 8 != 0);
}

int64_t pack_rows_a_chunk(int64_t positions) { return std::max<int64_t>(64, rows_for(positions)); }

bool pack(In indices_, In widths_, Out bytes_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t rows = size("indices", indices_, 0), positions = size("indices", indices_, 1);
    int kind = 0;
    const void* indices = index_data<const void*>(indices_, rows, positions, kind);
    const int64_t* widths = in<int64_t>("widths", widths_, {positions});
    int64_t bits = row_bits(widths, positions);
    uint8_t* bytes = out<uint8_t>("bytes", bytes_, {stream_bytes(rows, bits)});
    int count = threads(num_threads);
    auto kernel = CODEWORD_PICK(pack);
    nb::gil_scoped_release release;
    std::atomic<bool> fit{true};
    ranges(rows, pack_rows_a_chunk(positions), count, [&](int64_t start, int64_t stop, int) {
        if (!kernel(indices, kind, widths, positions, bits, bytes, start, stop)) fit = false;
    });
    return fit;
}

void unpack(In bytes_, In widths_, Out indices_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t rows = size("indices", indices_, 0), positions = size("indices", indices_, 1);
    int kind = 0;
    void* indices = index_data<void*>(indices_, rows, positions, kind);
    const int64_t* widths = in<int64_t>("widths", widths_, {positions});
    int64_t bits = row_bits(widths, positions), total = stream_bytes(rows, bits);
    for (int64_t p = 0; p < positions; ++p)
        if (kind < 8 && widths[p] > (kind == 4 ? 31 : 8 * kind)) refuse("widths has " + std::to_string(widths[p]) + ", more than indices hold");
    const uint8_t* bytes = in<uint8_t>("bytes", bytes_, {total});
    int count = threads(num_threads);
    auto kernel = CODEWORD_PICK(unpack);
    nb::gil_scoped_release release;
    ranges(rows, pack_rows_a_chunk(positions), count, [&](int64_t start, int64_t stop, int) {
        kernel(bytes, total, widths, positions, bits, indices, kind, start, stop);
    });
}

// ------------------------------------------------------------------ segment_sum

void segment_sum(In x_, In labels_, std::optional<In> weights_, Out sums_, Out counts_, int64_t num_threads) {
    [[maybe_unused]] DefaultFloatMode mode;
    int64_t n = size("x", x_, 0), d = size("x", x_, 1), segments = size("sums", sums_, 0);
    const float* x = in<float>("x", x_, {n, d});
    const int64_t* labels = in<int64_t>("labels", labels_, {n});
    const float* weights = weights_ ? in<float>("weights", *weights_, {n}) : nullptr;
    double* sums = out<double>("sums", sums_, {segments, d});
    double* counts = out<double>("counts", counts_, {segments});
    int count = threads(num_threads);
    if (!CODEWORD_PICK(labels_fit)(labels, n, segments)) refuse("labels has values outside of 0.." + std::to_string(segments - 1));
    auto sum = CODEWORD_PICK(segment_sum);
    auto total = CODEWORD_PICK(segment_count);
    nb::gil_scoped_release release;
    // Columns are independent: each is added in row order by whoever has it.
    int64_t columns = std::max<int64_t>(16, chunks_of(chunks_of(d, count), 8) * 8);
    ranges(d, columns, count, [&](int64_t start, int64_t stop, int) { sum(x, labels, weights, sums, n, d, start, stop); });
    total(labels, weights, counts, n);
}

}  // namespace
}  // namespace codeword

NB_MODULE(_native, m) {
    using namespace codeword;
    m.doc() = "Compiled kernels of codeword; call them through codeword.ops.";
    m.def("isa", [] { return isa_name(isa()); }, "The instruction set in use.");
    m.def("set_thread_bytes", &set_thread_bytes, nb::arg("bytes"), "Bytes of codes that pay for a thread of a scan; 0 for tests: all threads.");
    m.def("set_isa", &set_isa, nb::arg("name"), "Force an instruction set for tests and benchmarks; '' for the best.");
    m.def("compiled_isas", [] { nb::list names; for (auto& name : compiled_isas()) names.append(name); return names; });
    m.def("runnable_isas", [] { nb::list names; for (auto& name : runnable_isas()) names.append(name); return names; });
    m.def("workers", &workers, "Threads the pool has started in this process.");

    watch_forks();
    bind_adjust(m);
    bind_bits(m);
    bind_searcher(m);
    bind_search(m);
    bind_e8(m);
    bind_fsq(m);
    bind_pyramid(m);
    m.def("hadamard", &hadamard, nb::arg("x"), nb::arg("out"), nb::arg("num_threads"));
    m.def("nearest", &nearest, nb::arg("x"), nb::arg("codebook"), nb::arg("indices"), nb::arg("distances"), nb::arg("num_threads"));
    m.def("nearest_group", &nearest_group_codes, nb::arg("k"), nb::arg("d"), "Codewords a group of nearest_tracked; 0: not tracked.");
    m.def("nearest_tracking_pays", &nearest_tracking_pays, nb::arg("k"), nb::arg("d"), "Whether nearest_tracked is faster than nearest.");
    m.def("nearest_tracked", &nearest_tracked, nb::arg("x"), nb::arg("codebook"), nb::arg("shifts").none(), nb::arg("indices"),
          nb::arg("distances"), nb::arg("bounds"), nb::arg("num_threads"));
    m.def("pack", &pack, nb::arg("indices"), nb::arg("widths"), nb::arg("bytes"), nb::arg("num_threads"),
          "Into zeroed bytes; False where an index does not fit its width.");
    m.def("project", &project, nb::arg("x"), nb::arg("matrix"), nb::arg("out"), nb::arg("num_threads"));
    m.def("rotate", &rotate, nb::arg("x"), nb::arg("signs"), nb::arg("out"), nb::arg("inverse"), nb::arg("num_threads"));
    m.def("segment_sum", &segment_sum, nb::arg("x"), nb::arg("labels"), nb::arg("weights").none(), nb::arg("sums"), nb::arg("counts"),
          nb::arg("num_threads"), "Adds to sums and counts.");
    m.def("unpack", &unpack, nb::arg("bytes"), nb::arg("widths"), nb::arg("indices"), nb::arg("num_threads"));
}
