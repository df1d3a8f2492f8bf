#include "cpu.h"

#include <atomic>
#include <cstring>

namespace st3fx {
namespace {

constexpr Isa kAll[] = {Isa::avx512, Isa::avx2, Isa::baseline, Isa::scalar};  // best first

std::atomic<int> selected{-1};

bool is_available(Isa isa) {
#if defined(__x86_64__)
  // These ask the operating system too: it must save the wide registers.
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default: return true;
  }
#else
  return isa == Isa::baseline || isa == Isa::scalar;
#endif
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
#if defined(__aarch64__)
    case Isa::baseline: return "neon";
#else
    case Isa::baseline: return "baseline";
#endif
    default: return "scalar";
  }
}

Isa current_isa() {
  const int chosen = selected.load();
  if (chosen >= 0) return static_cast<Isa>(chosen);
  for (Isa isa : kAll)
    if (is_available(isa)) return isa;
  return Isa::scalar;
}

const Isa* find_isa(const char* name) {
  for (const Isa& isa : kAll)
    if (std::strcmp(name, name_of(isa)) == 0 && is_available(isa)) return &isa;
  return nullptr;
}

bool select_isa(const char* name) {
  const Isa* found = find_isa(name);
  if (found) selected = static_cast<int>(*found);
  return found;
}

}  // namespace st3fx
