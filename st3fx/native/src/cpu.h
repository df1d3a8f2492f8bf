// Which instruction sets this CPU has, and which of them the kernels use.
#pragma once

namespace st3fx {

enum class Isa { scalar, baseline, avx2, avx512 };

/// The name that users see: "scalar", "baseline" ("neon" on ARM), "avx2", "avx512".
const char* name_of(Isa isa);

/// The instruction set of that name if this library has it and this CPU can run it, else null.
const Isa* find_isa(const char* name);

/// The instruction set that kernels created from now on use: the best one, or what was selected.
Isa current_isa();

/// Selects one by name; false if there is none of that name, or the CPU cannot run it.
bool select_isa(const char* name);

}  // namespace st3fx
