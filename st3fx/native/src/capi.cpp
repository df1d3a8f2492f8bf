// What Python calls through ctypes: versions and instruction sets.
#include "cpu.h"
#include "kernels.h"

#define ST3FX_EXPORT extern "C" __attribute__((visibility("default")))

/// Raised with every change of the exported functions, or of an operator's meaning.
ST3FX_EXPORT int st3fx_abi_version() { return 3; }

/// The name of the instruction set that kernels created from now on use.
ST3FX_EXPORT const char* st3fx_isa() { return st3fx::name_of(st3fx::current_isa()); }

/// 1 if kernels for the instruction set of that name are here and this CPU can run them.
ST3FX_EXPORT int st3fx_has_isa(const char* name) { return st3fx::find_isa(name) != nullptr; }

/// Lets kernels created from now on use that one. 1 if it did.
ST3FX_EXPORT int st3fx_select_isa(const char* name) { return st3fx::select_isa(name); }

/// Does so many rounds of multiply-adds from registers: the floating-point operations done. For
/// benchmarks; 0 where the instruction set has no kernels.
ST3FX_EXPORT double st3fx_multiply_adds(int64_t rounds) {
  const st3fx::Kernels* kernels = st3fx::kernels_of(st3fx::current_isa());
  return kernels ? kernels->multiply_adds(rounds) : 0;
}
