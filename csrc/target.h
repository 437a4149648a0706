// Which instruction set a kernel is compiled for, and how the rest of the program names its copies.
//
// A kernel source is compiled once per target with CODEWORD_TARGET=baseline|avx2|avx512 and puts everything into
// codeword::CODEWORD_TARGET. Its header declares the functions once for all targets with CODEWORD_EACH_TARGET; a caller takes the
// copy that suits this processor with CODEWORD_PICK.
#pragma once

#ifdef CODEWORD_HAVE_avx2
#define CODEWORD_IN_AVX2(...) namespace avx2 { __VA_ARGS__ }
#define CODEWORD_IF_AVX2(f) codeword::isa() == codeword::Isa::avx2 ? &codeword::avx2::f :
#else
#define CODEWORD_IN_AVX2(...)
#define CODEWORD_IF_AVX2(f)
#endif
#ifdef CODEWORD_HAVE_avx512
#define CODEWORD_IN_AVX512(...) namespace avx512 { __VA_ARGS__ }
#define CODEWORD_IF_AVX512(f) codeword::isa() == codeword::Isa::avx512 ? &codeword::avx512::f :
#else
#define CODEWORD_IN_AVX512(...)
#define CODEWORD_IF_AVX512(f)
#endif

#ifdef CODEWORD_TARGET  // inside a kernel: only its own copy
#define CODEWORD_EACH_TARGET(...) namespace codeword { namespace CODEWORD_TARGET { __VA_ARGS__ } }
#else
#define CODEWORD_EACH_TARGET(...) \
    namespace codeword { namespace baseline { __VA_ARGS__ } CODEWORD_IN_AVX2(__VA_ARGS__) CODEWORD_IN_AVX512(__VA_ARGS__) }
#endif
#define CODEWORD_PICK(f) (CODEWORD_IF_AVX512(f) CODEWORD_IF_AVX2(f) &codeword::baseline::f)
