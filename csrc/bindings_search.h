// The ops of search and grid codes, for bindings.cpp.
#pragma once
#include <nanobind/nanobind.h>

namespace codeword {
void bind_search(nanobind::module_& m);
void bind_bits(nanobind::module_& m);
void bind_adjust(nanobind::module_& m);
void bind_searcher(nanobind::module_& m);
}
