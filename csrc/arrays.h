// Checked views of the arrays Python hands over. Every message is one sentence: what was wrong, the value received, what is allowed.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace codeword {

namespace nb = nanobind;

// What bindings accept: any CPU array; a read-only one where the op only reads.
using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string& sentence) { throw nb::value_error(sentence.c_str()); }

inline int64_t product(int64_t a, int64_t b) {
    int64_t c;
    if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &c)) refuse("a size of " + std::to_string(a) + " times " + std::to_string(b) + " overflows");
    return c;
}

template <class T> struct Name;
template <> struct Name<float> { static constexpr const char* value = "float32"; };
template <> struct Name<double> { static constexpr const char* value = "float64"; };
template <> struct Name<int64_t> { static constexpr const char* value = "int64"; };
template <> struct Name<int32_t> { static constexpr const char* value = "int32"; };
template <> struct Name<uint64_t> { static constexpr const char* value = "uint64"; };
template <> struct Name<uint32_t> { static constexpr const char* value = "uint32"; };
template <> struct Name<uint16_t> { static constexpr const char* value = "uint16"; };
template <> struct Name<int16_t> { static constexpr const char* value = "int16"; };
template <> struct Name<int8_t> { static constexpr const char* value = "int8"; };
template <> struct Name<uint8_t> { static constexpr const char* value = "uint8"; };

// Dtype T, the shape given (-1: any size), C-contiguous; the number of bytes must not overflow.
template <class T, class Array>
inline void check(const char* name, const Array& array, std::initializer_list<int64_t> shape) {
    if (array.dtype() != nb::dtype<T>()) refuse(std::string(name) + " has another dtype than the " + Name<T>::value + " needed");
    std::string got = "(", need = "(";
    for (size_t i = 0; i < array.ndim(); ++i) got += (i ? ", " : "") + std::to_string(array.shape(i));
    bool fits = array.ndim() == shape.size();
    size_t axis = 0;
    for (int64_t size : shape) {
        need += (axis ? ", " : "") + (size < 0 ? std::string("any") : std::to_string(size));
        fits = fits && (size < 0 || static_cast<int64_t>(array.shape(axis)) == size);
        ++axis;
    }
    if (!fits) refuse(std::string(name) + " has shape " + got + "); " + need + ") is needed");
    int64_t stride = 1;
    bool empty = array.size() == 0;
    for (size_t i = array.ndim(); i-- > 0 && !empty;) {
        if (array.shape(i) != 1 && array.stride(i) != stride) refuse(std::string(name) + " of shape " + got + ") is not C-contiguous");
        stride = product(stride, static_cast<int64_t>(array.shape(i)));
    }
    product(stride, sizeof(T));
}

template <class T>
const T* in(const char* name, const In& array, std::initializer_list<int64_t> shape) {
    check<T>(name, array, shape);
    return static_cast<const T*>(array.data());
}

template <class T>
T* out(const char* name, const Out& array, std::initializer_list<int64_t> shape) {
    check<T>(name, array, shape);
    return static_cast<T*>(array.data());
}

template <class Array>
int64_t size(const char* name, const Array& array, size_t axis) {
    if (axis >= array.ndim()) refuse(std::string(name) + " has " + std::to_string(array.ndim()) + " axes; more are needed");
    return static_cast<int64_t>(array.shape(axis));
}

inline int threads(int64_t num_threads) {
    if (num_threads < 1) refuse("num_threads is " + std::to_string(num_threads) + "; at least 1 is needed");
    return static_cast<int>(num_threads < 1024 ? num_threads : 1024);
}

}  // namespace codeword
