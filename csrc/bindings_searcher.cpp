// Searcher: an index's search from raw queries to hits in one call. It holds what the index holds (its arrays, not copies) and computes what
// the Python path computes (search/top_k.py), bit for bit: with one query, calls between small operations would take longer than the scan.
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "arrays.h"
#include "bindings_search.h"
#include "isa.h"
#include "lut_tables/lut_tables.h"
#include "pool.h"
#include "project/project.h"
#include "runs.h"
#include "spans.h"

namespace codeword {
namespace {

constexpr float LARGEST = 1e16f;       // as search/scores.py allows
constexpr int64_t CHUNK = 16;          // queries a task makes ready
constexpr double PREPARED_BYTES = 2;   // of codes, which take as long as a multiply-add of what makes queries ready

// A buffer of a caller's numpy array for the time of one call: cheaper than an nb::ndarray.
class View {
public:
    View(const nb::object& object, const char* name, char kind, int64_t rows, int64_t columns, bool writable) : name_(name) {
        const int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object.ptr(), &view_, flags)) throw nb::python_error();
        held_ = true;
        const char* format = view_.format ? view_.format : "B";
        const bool type = kind == 'f' ? !std::strcmp(format, "f") : view_.itemsize == 8 && (*format == 'q' || *format == 'l') && !format[1];
        if (!type || view_.ndim != 2 || (rows >= 0 && view_.shape[0] != rows) || view_.shape[1] != columns) {
            const std::string got = std::string(format) + " with " + std::to_string(view_.ndim) + " axes";
            release();
            refuse(std::string("Searcher got ") + name + " of type " + got + "; a C-contiguous " + (kind == 'f' ? "float32" : "int64") + " array of shape (" +
                   (rows < 0 ? std::string("any") : std::to_string(rows)) + ", " + std::to_string(columns) + ") is needed");
        }
    }
    View(const View&) = delete;
    ~View() { release(); }

    template <class T> T* as() const { return static_cast<T*>(view_.buf); }
    int64_t rows() const { return view_.shape[0]; }

private:
    void release() {
        if (held_) PyBuffer_Release(&view_);
        held_ = false;
    }
    const char* name_;
    Py_buffer view_{};
    bool held_ = false;
};

enum class Kind { none, slices, sums, bits, segments };

struct Segment {
    LutBlocks lut{};
    BitBlocks bits{};
    SegmentBlocks segments{};
    const int64_t *ids, *starts, *counts;
    int64_t slots, live;
};

struct Hit {
    float distance;
    int64_t last, id, slot;  // last: of equal distances the lower id first, missing ones behind
    int64_t which;
};

class Searcher {
public:
    Searcher(int64_t dim, const std::string& metric) : dim_(dim), l2_(metric != "ip"), cosine_(metric == "cosine") {
        if (dim < 1 || dim > 1 << 24) refuse("Searcher got dim=" + std::to_string(dim) + "; 1..2^24 are allowed");
        if (metric != "l2" && metric != "ip" && metric != "cosine") refuse("Searcher got metric=" + metric + "; l2, ip and cosine are known");
    }

    // turned (dim, lists): centroids, coordinates first; squares (lists): |c|^2.
    void set_lists(In turned, In squares, bool residual) {
        lists_ = size("squares", squares, 0);
        centroids_ = keep<float>("turned", turned, {dim_, lists_});
        squares_ = keep<float>("squares", squares, {lists_});
        residual_ = residual;
    }

    void set_slices(In turned, std::optional<In> first, double factor, std::optional<In> rotation) {
        start(Kind::slices);
        books_ = size("turned", turned, 0), width_ = size("turned", turned, 1), entries_ = size("turned", turned, 2);
        if (product(books_, width_) != dim_ || (factor != -1 && factor != -2))
            refuse("Searcher got " + std::to_string(books_) + " books of width " + std::to_string(width_) + " and a factor of " + std::to_string(factor) +
                   "; books that make up dim=" + std::to_string(dim_) + " and -1 or -2 are needed");
        words_ = keep<float>("turned", turned, {books_, width_, entries_});
        first_ = first ? keep<double>("first", *first, {books_, entries_}) : nullptr;
        factor_ = factor;
        rotation_ = rotation ? keep<float>("rotation", *rotation, {dim_, dim_}) : nullptr;
    }

    // turned (dim, books * entries)
    void set_sums(In turned, int64_t books, int64_t entries, double factor) {
        start(Kind::sums);
        books_ = books, entries_ = entries, factor_ = factor;
        if (books < 1 || entries < 1 || (factor != -1 && factor != -2))
            refuse("Searcher got " + std::to_string(books) + " books of " + std::to_string(entries) + " entries and a factor of " + std::to_string(factor) +
                   "; at least one of each and -1 or -2 are needed");
        words_ = keep<float>("turned", turned, {dim_, product(books, entries)});
    }

    void set_bits(In center, In signs, int64_t bits, double slack) {
        start(Kind::bits);
        if (bits < 1 || bits > 9) refuse("Searcher got " + std::to_string(bits) + " bits; 1..9 are allowed");
        check_width("Searcher", dim_);
        bits_ = {keep<float>("center", center, {dim_}), keep<float>("signs", signs, {4, dim_}), dim_, static_cast<int>(bits), slack, l2_};
    }

    // axes (dim, coded dimensions): coordinates first
    void set_segments(In mean, In axes, In plan, In constants) {
        start(Kind::segments);
        const int64_t segments = size("plan", plan, 0);
        const int64_t* rows = keep<int64_t>("plan", plan, {segments, 2});
        const int64_t groups = read_plan("Searcher", rows, segments, parts_, layout_);
        check_width("Searcher", 8 * layout_.eights);
        coded_ = 0;
        for (int64_t s = 0; s < segments; ++s) coded_ += rows[2 * s];
        mean_ = keep<float>("mean", mean, {dim_});
        axes_ = keep<float>("axes", axes, {dim_, coded_});
        cut_ = {rows, keep<double>("constants", constants, {3, segments}), groups, l2_};
    }

    void add_codes(In codes, int64_t width, std::optional<In> terms, In ids, In starts, In counts, std::optional<In> allowed, int64_t live) {
        if (kind_ != Kind::slices && kind_ != Kind::sums) refuse("Searcher got table codes for queries that are not made into tables");
        if ((width != 4 && width != 8 && width != 16) || entries_ > int64_t{1} << width)
            refuse("Searcher got codes of " + std::to_string(width) + " bits for " + std::to_string(entries_) + " entries; 4, 8 or 16 that hold them are allowed");
        Segment segment{};
        const int64_t count = size("codes", codes, 0), rows = product(count, LUT_BLOCK);
        segment.lut.codes = width == 4 ? static_cast<const void*>(keep<uint8_t>("codes", codes, {count, (books_ + 3) / 4, 64}))
                            : width == 8 ? static_cast<const void*>(keep<uint8_t>("codes", codes, {count, books_, LUT_BLOCK}))
                                         : static_cast<const void*>(keep<uint16_t>("codes", codes, {count, books_, LUT_BLOCK}));
        segment.lut.terms = terms ? keep<float>("terms", *terms, {rows}) : nullptr;
        segment.lut.allowed = mask(allowed, rows);
        segment.lut.books = books_, segment.lut.size = entries_, segment.lut.width = static_cast<int>(width);
        add(segment, rows, ids, starts, counts, live);
    }

    void add_bits(In planes, In factors, In centers, std::optional<In> rest, std::optional<In> rest_factors, In ids, In starts, In counts,
                  std::optional<In> allowed, int64_t live) {
        if (kind_ == Kind::bits) {
            Segment segment{};
            BitBlocks& b = segment.bits;
            const int64_t count = size("planes", planes, 0), rows = product(count, 32);
            b.bits = bits_.bits, b.eights = bits_.eights(), b.groups = (b.eights + 3) / 4, b.width = b.bits > 1 ? 4 * (b.bits - 1) * b.groups : 0;
            fill(b, count, 3, 3, b.bits > 1, planes, factors, centers, rest, rest_factors, allowed);
            add(segment, rows, ids, starts, counts, live);
        } else if (kind_ == Kind::segments) {
            Segment segment{};
            SegmentBlocks& b = segment.segments;
            const int64_t count = size("planes", planes, 0), rows = product(count, 32);
            b = layout_;
            b.parts = parts_;
            fill(b, count, 1 + 2 * b.count, 2 * b.refined, b.refined > 0, planes, factors, centers, rest, rest_factors, allowed);
            add(segment, rows, ids, starts, counts, live);
        } else {
            refuse("Searcher got planes for queries that are not made into bits");
        }
    }

    // The `wanted` best of queries (n, dim) float32 by (distance, id), padded with +inf and -1: distances float32 and ids int64 (n, wanted), and
    // for re-ranking the segment and slot of each. False, and nothing is written, where a query has values that may not be searched or
    // CODEWORD_OPS asks for other implementations.
    bool search(nb::object queries_, int64_t wanted, int64_t nprobe, int64_t num_threads, nb::object distances_, nb::object ids_, nb::object which_,
                nb::object slots_) const {
        [[maybe_unused]] DefaultFloatMode mode;
        if (kind_ == Kind::none || wanted < 1 || nprobe < 1)
            refuse("Searcher got k=" + std::to_string(wanted) + " and nprobe=" + std::to_string(nprobe) + "; at least 1 of each is needed");
        const char* forced = std::getenv("CODEWORD_OPS");
        if (forced && *forced && std::strcmp(forced, "native")) return false;  // the definitions are asked for
        const View queries(queries_, "queries", 'f', -1, dim_, false);
        const int64_t count = queries.rows();
        const View distances(distances_, "distances", 'f', count, wanted, true), ids(ids_, "ids", 'q', count, wanted, true);
        std::optional<View> which, slots;
        if (!which_.is_none()) {
            which.emplace(which_, "which", 'q', count, wanted, true);
            slots.emplace(slots_, "slots", 'q', count, wanted, true);
        }
        const int workers = threads(num_threads);
        nb::gil_scoped_release release;
        return answer(queries.as<float>(), count, wanted, std::min(nprobe, lists_), workers, distances.as<float>(), ids.as<int64_t>(),
                      which ? which->as<int64_t>() : nullptr, slots ? slots->as<int64_t>() : nullptr);
    }

private:
    // Queries made ready: what each kind needs.
    struct Ready {
        std::unique_ptr<float[]> rows;     // (n, dim) of unit length, for cosine
        std::unique_ptr<float[]> norms;    // (n)
        std::unique_ptr<float[]> tables;   // (n, books, entries)
        std::unique_ptr<int8_t[]> z1;
        std::unique_ptr<int16_t[]> z;
        std::unique_ptr<float[]> scalars;
        std::unique_ptr<int64_t[]> lists;  // (n, probes)
        std::unique_ptr<float[]> coarse;   // (n, probes)
        int64_t probes;
    };

    template <class T> static std::unique_ptr<T[]> room(int64_t n, int64_t each) { return std::unique_ptr<T[]>(new T[static_cast<size_t>(product(n, each))]); }

    void start(Kind kind) {
        if (kind_ != Kind::none) refuse("Searcher was told twice how queries are made ready");
        kind_ = kind;
    }

    template <class T> const T* keep(const char* name, const In& array, std::initializer_list<int64_t> shape) {
        const T* at = in<T>(name, array, shape);
        kept_.push_back(array);
        return at;
    }

    const uint8_t* mask(const std::optional<In>& allowed, int64_t rows) { return allowed ? keep<uint8_t>("allowed", *allowed, {rows}) : nullptr; }

    template <class Blocks>
    void fill(Blocks& b, int64_t count, int64_t numbers, int64_t rest_numbers, bool more, In& planes, In& factors, In& centers, std::optional<In>& rest,
              std::optional<In>& rest_factors, std::optional<In>& allowed) {
        const int64_t rows = product(count, 32);
        b.planes = keep<uint8_t>("planes", planes, {count, b.eights, 32});
        b.factors = keep<float>("factors", factors, {count, numbers, 32});
        b.centers = keep<float>("centers", centers, {count});
        b.allowed = mask(allowed, rows);
        if (more && !(rest && rest_factors)) refuse("Searcher got no rest; codes of more than one bit have one");
        b.rest = more ? keep<uint8_t>("rest", *rest, {rows, b.width}) : nullptr;
        b.rest_factors = more ? keep<float>("rest_factors", *rest_factors, {rows, rest_numbers}) : nullptr;
    }

    void add(Segment& segment, int64_t rows, In& ids, In& starts, In& counts, int64_t live) {
        segment.slots = rows;
        segment.live = live;
        segment.ids = keep<int64_t>("ids", ids, {rows});
        segment.starts = keep<int64_t>("starts", starts, {lists_});
        segment.counts = keep<int64_t>("counts", counts, {lists_});
        if (live < 1) refuse("Searcher got a segment without live rows");
        for (int64_t i = 0; i < lists_; ++i) {
            const int64_t span[2] = {segment.starts[i], segment.starts[i] + segment.counts[i]};
            check_spans("Searcher", span, 1, rows);
        }
        segments_.push_back(segment);
    }

    // Multiply-adds of what makes a query ready, about.
    double effort() const {
        double values = 2.0 * static_cast<double>(dim_) + (centroids_ ? static_cast<double>(dim_ * lists_) : 0);
        if (kind_ == Kind::slices) values += static_cast<double>(dim_ * entries_) + (rotation_ ? static_cast<double>(dim_ * dim_) : 0);
        if (kind_ == Kind::sums) values += static_cast<double>(dim_ * books_ * entries_);
        if (kind_ == Kind::bits) values += static_cast<double>(dim_ * 100);
        if (kind_ == Kind::segments) values += static_cast<double>(dim_ * coded_ + 50 * coded_);
        return values;
    }

    bool answer(const float* x, int64_t count, int64_t wanted, int64_t probes, int workers, float* distances, int64_t* ids, int64_t* which,
                int64_t* slots) const {
        Ready ready;
        ready.probes = probes;
        x = checked(x, count, ready);
        if (!x) return false;
        room_for(count, ready);
        // Without lists every query visits the same rows, known before it is made ready: threads do that when they come to it, and the whole
        // call needs them once.
        const std::function<void(int64_t, int64_t)> later = [&](int64_t first, int64_t some) { prepare(x, first, some, ready); };
        const bool lazy = !centroids_ && count > 1;
        if (lazy) std::fill_n(ready.lists.get(), count * probes, 0);
        else prepare_all(x, count, workers, ready);
        std::vector<std::pair<std::unique_ptr<float[]>, std::unique_ptr<int64_t[]>>> found;
        std::unique_ptr<int64_t[]> spans = room<int64_t>(count * probes, 2);
        for (const Segment& segment : segments_) {
            const int64_t k = std::min(wanted, segment.live);
            found.emplace_back(room<float>(count, k), room<int64_t>(count, k));
            for (int64_t i = 0; i < count * probes; ++i) {
                spans[2 * i] = segment.starts[ready.lists[i]];
                spans[2 * i + 1] = spans[2 * i] + segment.counts[ready.lists[i]];
            }
            const Visit visit{spans.get(), ready.coarse.get(), count, probes, k, workers, found.back().first.get(), found.back().second.get(),
                              lazy && found.size() == 1 ? &later : nullptr};
            if (kind_ == Kind::bits) run_bit_scan(segment.bits, {ready.z1.get(), ready.z.get(), ready.scalars.get(), l2_}, visit);
            else if (kind_ == Kind::segments)
                run_segment_scan(segment.segments, {ready.z1.get(), ready.z.get(), ready.scalars.get(), cut_.groups, l2_}, visit);
            else run_lut_scan(segment.lut, ready.tables.get(), visit);
        }
        std::vector<Hit> hits;
        for (int64_t q = 0; q < count; ++q) {
            hits.clear();
            bool sorted = segments_.size() == 1;
            for (size_t s = 0; s < segments_.size(); ++s) {
                const int64_t k = std::min(wanted, segments_[s].live);
                for (int64_t i = 0; i < k; ++i) {
                    const int64_t slot = found[s].second[q * k + i];
                    if (slot < 0) break;  // what is missing comes last
                    const float distance = found[s].first[q * k + i], scaled = cosine_ ? 0.5f * distance : distance;
                    const int64_t id = segments_[s].ids[slot];
                    sorted = sorted && (hits.empty() || hits.back().distance < scaled);
                    hits.push_back({scaled, id < 0 ? INT64_MAX : id, id, slot, static_cast<int64_t>(s)});
                }
            }
            if (!sorted)
                std::stable_sort(hits.begin(), hits.end(), [](const Hit& a, const Hit& b) { return a.distance < b.distance || (a.distance == b.distance && a.last < b.last); });
            const int64_t have = std::min(wanted, static_cast<int64_t>(hits.size())), at = q * wanted;
            for (int64_t i = 0; i < wanted; ++i) {
                const Hit hit = i < have ? hits[static_cast<size_t>(i)] : Hit{INFINITY, 0, -1, -1, -1};
                distances[at + i] = hit.distance;
                ids[at + i] = hit.id;
                if (which) which[at + i] = hit.which, slots[at + i] = hit.slot;
            }
        }
        return true;
    }

    // Prepared rows as search/scores.py defines them; null where one may not be searched.
    const float* checked(const float* x, int64_t count, Ready& ready) const {
        for (int64_t i = 0; i < count; ++i) {
            const float* row = x + i * dim_;
            float largest[8] = {}, odd[8] = {};  // side by side: a chain of one waits for itself
            const auto look = [&](int lane, float value) {
                const float size = std::fabs(value);
                largest[lane] = size > largest[lane] ? size : largest[lane];
                odd[lane] += value - value;
            };
            int64_t j = 0;
            for (; j + 8 <= dim_; j += 8)
                for (int lane = 0; lane < 8; ++lane) look(lane, row[j + lane]);
            for (; j < dim_; ++j) look(0, row[j]);
            for (int lane = 0; lane < 8; ++lane)
                if (!(odd[lane] == 0) || (!cosine_ && largest[lane] > LARGEST)) return nullptr;
        }
        if (!cosine_) return x;
        auto square = CODEWORD_PICK(bit_square);
        ready.rows = room<float>(count, dim_);
        for (int64_t i = 0; i < count; ++i) {
            const double length = std::sqrt(square(x + i * dim_, dim_));
            if (!(length > 0)) return nullptr;
            for (int64_t j = 0; j < dim_; ++j) ready.rows[i * dim_ + j] = static_cast<float>(static_cast<double>(x[i * dim_ + j]) / length);
        }
        return ready.rows.get();
    }

    void room_for(int64_t count, Ready& ready) const {
        ready.norms = room<float>(count, 1);
        ready.lists = room<int64_t>(count, ready.probes);
        ready.coarse = room<float>(count, ready.probes);
        if (kind_ == Kind::slices || kind_ == Kind::sums) ready.tables = room<float>(count, product(books_, entries_));
        if (kind_ == Kind::bits) {
            ready.z1 = room<int8_t>(count, 8 * bits_.eights());
            ready.z = room<int16_t>(count, bits_.width());
            ready.scalars = room<float>(count, 4);
        }
        if (kind_ == Kind::segments) {
            ready.z1 = room<int8_t>(count, 8 * layout_.eights);
            ready.z = room<int16_t>(count, 32 * cut_.groups);
            ready.scalars = room<float>(count, 1 + 4 * layout_.count);
        }
    }

    void prepare_all(const float* x, int64_t count, int workers, Ready& ready) const {
        const int64_t chunk_size = std::max<int64_t>(1, std::min<int64_t>(CHUNK, (int64_t{1} << 22) / lists_)), chunks = (count + chunk_size - 1) / chunk_size;
        const int helpers = static_cast<int>(std::min<int64_t>(chunks, paying_threads(workers, static_cast<double>(count) * effort() * PREPARED_BYTES)));
        parallel(chunks, helpers, [&](int64_t chunk, int) { prepare(x, chunk * chunk_size, std::min(chunk_size, count - chunk * chunk_size), ready); });
    }

    // Some queries of x, from first on: their norms, lists, coarse distances, and what a scan multiplies.
    void prepare(const float* x, int64_t first, int64_t some, Ready& ready) const {
        const int64_t own = kind_ == Kind::segments ? (dim_ + coded_) * some : kind_ == Kind::bits ? 2 * dim_ : rotation_ ? dim_ * some : 0;
        std::unique_ptr<float[]> scratch = room<float>(1, std::max({centroids_ ? lists_ * some : 0, own, int64_t{1}}));
        float* spare = scratch.get();
        x += first * dim_;
        for (int64_t i = 0; i < some; ++i) ready.norms[first + i] = l2_ || kind_ == Kind::bits ? square_norm(x + i * dim_, dim_) : 0;
        probe(x, first, some, spare, ready);
        if (kind_ == Kind::slices) slices(x, first, some, spare, ready);
        if (kind_ == Kind::sums) sums(x, first, some, ready);
        if (kind_ == Kind::segments) segments(x, first, some, spare, ready);
        for (int64_t q = first; q < first + some && kind_ == Kind::bits; ++q, x += dim_)
            bits_.row(x, ready.norms[q], spare, ready.z1.get() + 8 * bits_.eights() * q, ready.z.get() + bits_.width() * q, ready.scalars.get() + 4 * q);
    }

    // -x times a matrix that lies turned (dim, columns), the negatives of ops.project's values but for the sign of zero.
    void negatives(const float* x, int64_t count, const float* turned, int64_t columns, float* out) const {
        CODEWORD_PICK(lut_tables)(x, count, dim_, turned, columns, dim_, -1.0, nullptr, out, columns);
    }

    // As Lists.probe: lists in order of key, and what a scan adds.
    void probe(const float* x, int64_t first, int64_t count, float* products, Ready& ready) const {
        const int64_t probes = ready.probes;
        if (!centroids_) {
            for (int64_t q = first; q < first + count; ++q) ready.lists[q] = 0, ready.coarse[q] = l2_ ? ready.norms[q] : 0;
            return;
        }
        negatives(x, count, centroids_, lists_, products);
        std::vector<int64_t> order(static_cast<size_t>(probes < lists_ ? lists_ : 0));
        for (int64_t i = 0; i < count; ++i) {
            float* key = products + i * lists_;
            int64_t* lists = ready.lists.get() + (first + i) * probes;
            float* coarse = ready.coarse.get() + (first + i) * probes;
            for (int64_t c = 0; c < lists_; ++c) {
                const float value = 0.0f - key[c];  // the product; zero is +0
                key[c] = l2_ ? squares_[c] - 2.0f * value : -value;
            }
            if (probes == lists_) {
                for (int64_t c = 0; c < lists_; ++c) lists[c] = c;
            } else {
                for (int64_t c = 0; c < lists_; ++c) {  // the order of floats as that of integers, then the list
                    int32_t bits;
                    std::memcpy(&bits, key + c, 4);
                    order[static_cast<size_t>(c)] = static_cast<int64_t>(bits ^ ((bits >> 31) & 0x7FFFFFFF)) * (int64_t{1} << 32) + c;
                }
                std::nth_element(order.begin(), order.begin() + (probes - 1), order.end());
                std::sort(order.begin(), order.begin() + probes);
                for (int64_t p = 0; p < probes; ++p) lists[p] = order[static_cast<size_t>(p)] & 0xFFFFFFFF;
            }
            const float length = l2_ ? ready.norms[first + i] : 0;
            for (int64_t p = 0; p < probes; ++p) coarse[p] = !residual_ ? length : l2_ ? key[lists[p]] + length : key[lists[p]];
        }
    }

    void slices(const float* x, int64_t first, int64_t count, float* turned, Ready& ready) const {
        if (rotation_) {
            negatives(x, count, rotation_, dim_, turned);
            for (int64_t i = 0; i < count * dim_; ++i) turned[i] = 0.0f - turned[i];
            x = turned;
        }
        table_rows(x, count, words_, books_, width_, entries_, factor_, first_, ready.tables.get() + first * books_ * entries_);
    }

    void sums(const float* x, int64_t first, int64_t count, Ready& ready) const {
        const int64_t each = books_ * entries_;
        float* to = ready.tables.get() + first * each;
        negatives(x, count, words_, each, to);
        for (int64_t i = 0; factor_ == -2 && i < count * each; ++i) to[i] *= 2.0f;  // of the rounded product, as the definition has it
    }

    void segments(const float* x, int64_t first, int64_t count, float* spare, Ready& ready) const {
        constexpr float most = 3.40282347e+38f;
        float *centred = spare, *z = spare + count * dim_;
        for (int64_t i = 0; i < count * dim_; ++i) {
            const float value = x[i] - mean_[i % dim_];
            centred[i] = l2_ ? std::min(std::max(value, -most), most) : x[i];
        }
        negatives(centred, count, axes_, coded_, z);
        for (int64_t i = 0; i < count * coded_; ++i) z[i] = 0.0f - z[i];
        for (int64_t i = 0; i < count; ++i) {
            const int64_t q = first + i;
            float towards;
            CODEWORD_PICK(project_one)(x + i * dim_, mean_, &towards, dim_, 0, 1);
            SegmentBlocks layout = layout_;
            layout.parts = parts_;
            cut_.row(layout, z + i * coded_, centred + i * dim_, dim_, towards, ready.z1.get() + 8 * layout_.eights * q,
                     ready.z.get() + 32 * cut_.groups * q, ready.scalars.get() + (1 + 4 * layout_.count) * q);
        }
    }

    const int64_t dim_;
    const bool l2_, cosine_;
    Kind kind_ = Kind::none;
    bool residual_ = false;
    int64_t lists_ = 1, books_ = 0, width_ = 0, entries_ = 0, coded_ = 0;
    const float *centroids_ = nullptr, *squares_ = nullptr, *words_ = nullptr, *rotation_ = nullptr, *mean_ = nullptr, *axes_ = nullptr;
    const double* first_ = nullptr;
    double factor_ = -2;
    BitPreparation bits_{};
    SegmentPreparation cut_{};
    SegmentBlocks layout_{};
    SegmentPart parts_[SEGMENTS];
    std::vector<Segment> segments_;
    std::vector<In> kept_;
};

}  // namespace

void bind_searcher(nb::module_& m) {
    nb::class_<Searcher>(m, "Searcher")
        .def(nb::init<int64_t, const std::string&>(), nb::arg("dim"), nb::arg("metric"))
        .def("set_lists", &Searcher::set_lists, nb::arg("turned"), nb::arg("squares"), nb::arg("residual"))
        .def("set_slices", &Searcher::set_slices, nb::arg("turned"), nb::arg("first").none(), nb::arg("factor"), nb::arg("rotation").none())
        .def("set_sums", &Searcher::set_sums, nb::arg("turned"), nb::arg("books"), nb::arg("entries"), nb::arg("factor"))
        .def("set_bits", &Searcher::set_bits, nb::arg("center"), nb::arg("signs"), nb::arg("bits"), nb::arg("slack"))
        .def("set_segments", &Searcher::set_segments, nb::arg("mean"), nb::arg("axes"), nb::arg("plan"), nb::arg("constants"))
        .def("add_codes", &Searcher::add_codes, nb::arg("codes"), nb::arg("width"), nb::arg("terms").none(), nb::arg("ids"), nb::arg("starts"),
             nb::arg("counts"), nb::arg("allowed").none(), nb::arg("live"))
        .def("add_bits", &Searcher::add_bits, nb::arg("planes"), nb::arg("factors"), nb::arg("centers"), nb::arg("rest").none(),
             nb::arg("rest_factors").none(), nb::arg("ids"), nb::arg("starts"), nb::arg("counts"), nb::arg("allowed").none(), nb::arg("live"))
        .def("search", &Searcher::search, nb::arg("queries"), nb::arg("wanted"), nb::arg("nprobe"), nb::arg("num_threads"), nb::arg("distances"),
             nb::arg("ids"), nb::arg("which").none(), nb::arg("slots").none());
}

}  // namespace codeword
