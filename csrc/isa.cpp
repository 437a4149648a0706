#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace codeword {
namespace {

std::atomic<int> current{-1};

bool compiled(Isa isa) {
    switch (isa) {
#ifdef CODEWORD_HAVE_avx2
        case Isa::avx2: return true;
#endif
#ifdef CODEWORD_HAVE_avx512
        case Isa::avx512: return true;
#endif
        default: return isa == Isa::baseline;
    }
}

// Asks for everything the target's flags allow the compiler to use (F16C and BMI1 come with every AVX2 processor). The builtin
// also checks that the operating system saves the wide registers.
bool runs(Isa isa) {
#if defined(CODEWORD_HAVE_avx2) || defined(CODEWORD_HAVE_avx512)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                __builtin_cpu_supports("popcnt");
    if (isa == Isa::avx2) return avx2;
    if (isa == Isa::avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vpopcntdq") &&
               __builtin_cpu_supports("avx512vbmi");
#endif
    return isa == Isa::baseline;
}

constexpr Isa all[] = {Isa::baseline, Isa::avx2, Isa::avx512};

}  // namespace

std::string isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

std::vector<std::string> compiled_isas() {
    std::vector<std::string> names;
    for (Isa isa : all)
        if (compiled(isa)) names.push_back(isa_name(isa));
    return names;
}

std::vector<std::string> runnable_isas() {
    std::vector<std::string> names;
    for (Isa isa : all)
        if (compiled(isa) && runs(isa)) names.push_back(isa_name(isa));
    return names;
}

void set_isa(const std::string& name) {
    std::string allowed;
    Isa best = Isa::baseline;
    for (Isa isa : all) {
        if (!compiled(isa) || !runs(isa)) continue;
        if (isa_name(isa) == name) {
            current = static_cast<int>(isa);
            return;
        }
        best = isa;
        allowed += (allowed.empty() ? "" : ", ") + isa_name(isa);
    }
    if (!name.empty()) throw std::invalid_argument("CODEWORD_ISA=" + name + " cannot run here; " + allowed + " can");
    current = static_cast<int>(best);
}

Isa isa() {
    int value = current.load(std::memory_order_relaxed);
    if (value < 0) {
        const char* wanted = std::getenv("CODEWORD_ISA");
        set_isa(wanted ? wanted : "");
        value = current;
    }
    return static_cast<Isa>(value);
}

}  // namespace codeword
