// e8_nearest, for bindings.cpp.
#pragma once
#include <nanobind/nanobind.h>

namespace codeword {
void bind_e8(nanobind::module_& m);
}
