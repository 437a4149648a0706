// The instruction set that native ops run on: the best one compiled that this processor has, or what CODEWORD_ISA asks for.
#pragma once
#include <string>
#include <vector>

namespace codeword {

enum class Isa { baseline, avx2, avx512 };

Isa isa();                                  // the one in use; std::invalid_argument where CODEWORD_ISA names none that runs here
void set_isa(const std::string& name);      // "" for the best; std::invalid_argument where it cannot run here
std::string isa_name(Isa isa);
std::vector<std::string> compiled_isas();   // weakest first
std::vector<std::string> runnable_isas();   // of these, the ones this processor has

}  // namespace codeword
