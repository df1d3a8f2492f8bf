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
/// What the CPU and the operating system have. Not by __builtin_cpu_supports: it reads a table that
/// the compiler's own library fills when it is loaded, and zig's does not.
struct Features {
  bool avx2 = false, avx_vnni = false, avx512 = false, avx512_vnni = false;

  Features() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = bit(c, 12);
    if (!bit(c, 27) || !bit(c, 28)) return;  // no XGETBV, no AVX
    unsigned saved = 0, high = 0;            // which registers a switch of threads saves
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const bool wide = (saved & 0x06) == 0x06, widest = (saved & 0xe6) == 0xe6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = wide && fma && bit(b, 5);
    avx512 = widest && fma && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F DQ BW VL
    avx512_vnni = avx512 && bit(c, 11);
    const unsigned leaves = a;
    avx_vnni = avx2 && leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 4);
  }

  static bool bit(unsigned word, int at) { return word >> at & 1U; }
};

const Features kFeatures;
#endif

bool is_available(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512vnni: return kFeatures.avx512_vnni;
    case Isa::avx512: return kFeatures.avx512;
    case Isa::avxvnni: return kFeatures.avx_vnni;
    case Isa::avx2: return kFeatures.avx2;
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
