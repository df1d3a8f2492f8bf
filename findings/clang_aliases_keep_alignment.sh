#!/usr/bin/env bash
# clang 22.1.8 (ziglang 0.17.1): `aligned` lowers the alignment of a type in a typedef, and not in an
# alias, where it is dropped without a warning, under -Wall -Wextra too. GCC takes both.
#
#     typedef float T __attribute__((vector_size(16), aligned(4)));     alignof(T) == 4
#     using A = float __attribute__((vector_size(16), aligned(4)));     alignof(A) == 16; GCC: 4
#     using B = unsigned __attribute__((aligned(1)));                   alignof(B) == 4;  GCC: 1
#
# `vector_size`, in the same list, works in both. So a vector type for memory that is aligned to its
# elements alone, which is right under GCC and under its sanitizers, is read by aligned instructions
# (`movaps`) under clang, which fault where the memory happens to lie otherwise. A structure with such a
# member has another size, too: 32 bytes for 20. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ziglang==0.17.1
cat >"$folder/aligned.cpp" <<'CPP'
#include <cstdio>
typedef float T __attribute__((vector_size(16), aligned(4)));
using A = float __attribute__((vector_size(16), aligned(4)));
using B = unsigned __attribute__((aligned(1)));
struct WithT { char first; T second; };
struct WithA { char first; A second; };
int main() {
  std::printf("typedef %zu, alias %zu, alias of unsigned %zu, structures %zu and %zu\n",
              alignof(T), alignof(A), alignof(B), sizeof(WithT), sizeof(WithA));
}
CPP
cd "$folder"
"$folder/venv/bin/python" -m ziglang c++ --version | head -1
"$folder/venv/bin/python" -m ziglang c++ -std=c++17 -Wall -Wextra -Werror aligned.cpp -o aligned
seen=$(./aligned)
echo "clang: $seen"
[ "$seen" = "typedef 4, alias 16, alias of unsigned 4, structures 20 and 32" ]
if command -v g++ >/dev/null; then
    g++ -std=c++17 -Wall -Wextra -Werror aligned.cpp -o by_gcc
    seen=$(./by_gcc)
    echo "g++ $(g++ -dumpversion): $seen"
    [ "$seen" = "typedef 4, alias 4, alias of unsigned 1, structures 20 and 20" ]
fi
