// fsq_round and fsq_curve, for bindings.cpp.
#pragma once
#include <nanobind/nanobind.h>

namespace codeword {
void bind_fsq(nanobind::module_& m);
}
