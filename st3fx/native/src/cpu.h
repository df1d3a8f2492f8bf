// Which instruction sets this CPU has, and which of them the kernels use.
#pragma once

namespace st3fx {

enum class Isa { scalar, baseline, neondot, avx2, avxvnni, avx512, avx512vnni };

/// The name that users see: as here, but "neon" for the baseline on ARM. Those with a dot product of
/// bytes have the floating-point kernels of the one without.
const char* name_of(Isa isa);

/// The instruction set of that name if this library has it and this CPU can run it, else null.
const Isa* find_isa(const char* name);

/// The instruction set that kernels created from now on use: the best one, or what was selected.
Isa current_isa();

/// Selects one by name; false if there is none of that name, or the CPU cannot run it.
bool select_isa(const char* name);

}  // namespace st3fx
