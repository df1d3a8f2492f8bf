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
typedef float T __attribute__((vector_size(16), aligned(4)));
using A = float __attribute__((vector_size(16), aligned(4)));
using B = unsigned __attribute__((aligned(1)));
struct WithT { char first; T second; };
struct WithA { char first; A second; };
static_assert(alignof(T) == 4 && sizeof(WithT) == 20, "typedef");
#ifdef __clang__
static_assert(alignof(A) == 16 && sizeof(WithA) == 32 && alignof(B) == 4, "aliases");
#else
static_assert(alignof(A) == 4 && sizeof(WithA) == 20 && alignof(B) == 1, "aliases");
#endif
CPP
cd "$folder"
flags=(-std=c++17 -Wall -Wextra -Werror -c aligned.cpp -o /dev/null)
"$folder/venv/bin/python" -m ziglang c++ --version | head -1
"$folder/venv/bin/python" -m ziglang c++ "${flags[@]}"
echo "clang: typedef 4, alias 16, alias of unsigned 4, structures of 20 and 32 bytes, no warning"
if command -v g++ >/dev/null; then
    g++ "${flags[@]}"
    echo "g++ $(g++ -dumpversion): typedef 4, alias 4, alias of unsigned 1, structures of 20 bytes"
fi
