// The pyramid's ops, for bindings.cpp.
#pragma once
#include <nanobind/nanobind.h>

namespace codeword {
void bind_pyramid(nanobind::module_& m);
}
