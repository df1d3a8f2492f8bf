#include "cpu.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace st3fx {
namespace {

constexpr Isa kAll[] = {Isa::avx512vnni, Isa::avx512,   Isa::avxvnni, Isa::avx2,
                        Isa::neondot,    Isa::baseline, Isa::scalar};  // best first

std::atomic<int> selected{-1};

#if defined(__x86_64__)
/// Not all compilers know this one by name.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1U << 4);
}
#endif

bool is_available(Isa isa) {
#if defined(__x86_64__)
  // These ask the operating system too: it must save the wide registers.
  switch (isa) {
    case Isa::avx512vnni:
      return is_available(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avxvnni: return is_available(Isa::avx2) && has_avx_vnni();
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::neondot: return false;
    default: return true;
  }
#else
#if defined(__aarch64__) && defined(__linux__)
  if (isa == Isa::neondot) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__)
  if (isa == Isa::neondot) return true;  // every Mac
#endif
  return isa == Isa::baseline || isa == Isa::scalar;
#endif
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx512vnni: return "avx512vnni";
    case Isa::avx512: return "avx512";
    case Isa::avxvnni: return "avxvnni";
    case Isa::neondot: return "neondot";
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
