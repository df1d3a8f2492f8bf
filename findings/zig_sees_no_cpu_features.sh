#!/usr/bin/env bash
# ziglang 0.17.1 (clang 22.1.8) on x86-64: `__builtin_cpu_supports` is false for every feature, also
# after `__builtin_cpu_init()`, in programs and in shared libraries alike.
#
# Code that chooses its kernels by that builtin compiles and links without a word, and takes the
# slowest ones on every machine. The table behind it is filled by the compiler's runtime library: those
# of GCC and LLVM do it when a program is loaded, zig brings one of its own, whose table stays empty.
# CPUID itself says what there is, as seen on a CPU with AVX2:
#
#     cpuid 1, supports 0, after init 0
#
# Wheels for machines without a compiler are often built so (`python -m ziglang c++`). Needs an x86-64
# Linux with AVX2; fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ziglang==0.17.1
cat >"$folder/cpu.cpp" <<'CPP'
#include <cpuid.h>

extern "C" int supports() { return __builtin_cpu_supports("avx2") ? 1 : 0; }
extern "C" int after_init() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") ? 1 : 0;
}
extern "C" int cpuid() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) ? b >> 5 & 1 : 0;
}
CPP
echo 'extern "C" int supports(); int main() { return supports(); }' >"$folder/main.cpp"
cd "$folder"
compiler=("$folder/venv/bin/python" -m ziglang c++ -O2 -mcpu=baseline)
"${compiler[@]}" --version | head -1
"${compiler[@]}" -shared -fPIC cpu.cpp -o cpu.so
"${compiler[@]}" main.cpp cpu.cpp -o program
"$folder/venv/bin/python" - <<'PY'
import ctypes
import subprocess

library = ctypes.CDLL("./cpu.so")
seen = library.cpuid(), library.supports(), library.after_init()
print("cpuid {}, supports {}, after init {}".format(*seen))
assert seen == (1, 0, 0)
assert subprocess.run(["./program"], check=False).returncode == 0
PY
