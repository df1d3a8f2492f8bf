"""Builds the package, and the kernel library (``st3fx/native/src``) into it as one shared library.

    python setup.py build_ext --inplace      # rebuild the library in this tree

This file is the build backend too: setuptools' own, which also asks for a compiler from the package
index (ziglang, which is clang with the headers of every platform) where the machine has none.

The library is plain C++17 that Python loads with ctypes and ONNX Runtime with ``dlopen``; it needs
neither Python's headers nor ONNX Runtime's. Kernels that need a CPU feature are a source file of
their own, compiled with that feature's flags; which of them runs is decided when it is loaded.
Where no compiler works the package is installed without the library, after one line that says so.

Environment: ``CXX`` (the compiler), ``CXXFLAGS`` (added last), ``ST3FX_NO_KERNELS=1`` (do without).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension, build_meta, setup
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

SOURCES = Path("st3fx/native/src")
LIBRARY = "libst3fx.dylib" if sys.platform == "darwin" else "libst3fx.so"

# The same bytes from the same compiler everywhere: nothing here depends on the machine that builds.
# `fp-contract` lets a*b+c become one fused instruction, which the kernels are written for. There is
# no -ffast-math: infinities, NaN and signed zeros behave as they do in dense kernels.
FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math", "-pthread", "-Wall", "-Wextra", "-Wno-psabi",
]  # fmt: skip
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
FEATURE_FLAGS = {
    "isa_avx512.cpp": [*AVX512, "-mfma"],
    "isa_avx2.cpp": ["-mavx2", "-mfma"],
    "scalar.cpp": ["-ffp-contract=off"],
    # The same bits from all of these: products and sums stay apart.
    "latent_avx512.cpp": [*AVX512, "-ffp-contract=off"],
    "latent_avx2.cpp": ["-mavx2", "-ffp-contract=off"],
    "latent_baseline.cpp": ["-ffp-contract=off"],
    "quant_avx512vnni.cpp": [*AVX512, "-mavx512vnni", "-ffp-contract=off"],
    "quant_avxvnni.cpp": ["-mavx2", "-mavxvnni", "-ffp-contract=off"],
    "quant_avx2.cpp": ["-mavx2", "-ffp-contract=off"],
    "quant_baseline.cpp": ["-ffp-contract=off"],
    "quant_neondot.cpp": ["-march=armv8.2-a+dotprod", "-ffp-contract=off"],
    "quant.cpp": ["-ffp-contract=off"],
}
"""Further flags by file name. The other sources run on every CPU of their architecture."""
X86_ONLY = {
    "isa_avx512.cpp", "isa_avx2.cpp", "latent_avx512.cpp", "latent_avx2.cpp",
    "quant_avx512vnni.cpp", "quant_avxvnni.cpp", "quant_avx2.cpp",
}  # fmt: skip
ARM_ONLY = {"quant_neondot.cpp"}
ZIGS_NAMES = {"-march=armv8.2-a+dotprod": "-mcpu=baseline+dotprod"}
"""What zig calls a flag: to it ``-march`` names a CPU, which a version of ARM's is not."""
COMPILERS = ("c++", "g++", "clang++")
ZIG = "ziglang>=0.15"
"""The compiler of last resort: one wheel, which needs nothing of the system."""


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What a build needs besides setuptools: a compiler, where there is none."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _missing_compiler()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """As for a wheel."""
    return build_meta.get_requires_for_build_editable(config_settings) + _missing_compiler()


def _missing_compiler() -> list[str]:
    wanted = os.environ.get("ST3FX_NO_KERNELS") != "1" and "CXX" not in os.environ
    return [ZIG] if wanted and not any(map(shutil.which, COMPILERS)) else []


def compiler() -> list[str]:
    """The C++ compiler as a command."""
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        # Without a CPU's name it compiles for the one that it runs on, and for no other.
        return [sys.executable, "-m", "ziglang", "c++", "-mcpu=baseline", "-g0"]
    raise FileNotFoundError("no C++ compiler (c++, g++, clang++, ziglang) was found")


def is_x86(command: list[str]) -> bool:
    """Whether the compiler makes x86-64 code: it may be a cross compiler."""
    done = subprocess.run([*command, "-dumpmachine"], capture_output=True, text=True, check=False)
    # Its exit code tells nothing: zig has one of 1 where the target names a version of glibc.
    machine = done.stdout.strip().partition("-")[0]
    return (machine or platform.machine()).lower() in ("x86_64", "amd64")


def compile_library(target: Path, objects: Path) -> None:
    """Compile every source, several at a time, and link them into ``target``."""
    command = compiler()
    own = shlex.split(os.environ.get("CXXFLAGS", ""))
    sources = sorted(SOURCES.glob("*.cpp"))
    others = ARM_ONLY if is_x86(command) else X86_ONLY
    sources = [source for source in sources if source.name not in others]
    objects.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> str:
        built = objects / f"{source.stem}.o"
        flags = [*FLAGS, *FEATURE_FLAGS.get(source.name, []), *own]
        if "ziglang" in command:
            flags = [ZIGS_NAMES.get(flag, flag) for flag in flags]
        run([*command, *flags, "-c", str(source), "-o", str(built)])
        return str(built)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = list(pool.map(compile_one, sources))
    # What zig links in of its own library comes with symbols for debuggers, three times our size.
    strip = ["-s"] if "ziglang" in command else []
    run([*command, "-shared", "-pthread", *strip, *own, *built, "-o", str(target)])


def run(command: list[str]) -> None:
    """Run one compiler command; what it says is part of the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr.strip()}")
    if done.stderr:
        sys.stderr.write(done.stderr)


class BuildKernels(build_ext):
    """Builds the one extension, which is a plain shared library, or says why there is none."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where it lies in the package: it is no module, so no tag of Python's in its name."""
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def build_extension(self, ext: Extension) -> None:
        """Build it; a failure costs the kernels and one line, not the installation."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)
        try:
            if os.environ.get("ST3FX_NO_KERNELS") == "1":
                raise RuntimeError("ST3FX_NO_KERNELS=1")
            compile_library(target, Path(self.build_temp) / "kernels")
        except (OSError, RuntimeError) as error:
            lines = str(error).splitlines()
            first = next((line for line in lines if "error" in line), lines[-1])
            sys.stderr.write(f"warning: st3fx is built without its CPU kernels: {first}\n")

    def get_outputs(self) -> list[str]:
        """What was really built: an absent library is no missing file."""
        return [path for path in super().get_outputs() if Path(path).exists()]


class KernelWheel(bdist_wheel):
    """A wheel for any Python 3 of this platform: the library does not use Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, no ABI, this platform."""
        return ("py3", "none", super().get_tag()[2])


class KernelDistribution(Distribution):
    """A distribution that has platform files."""

    def has_ext_modules(self) -> bool:
        """Always: what is installed is of one platform."""
        return True


def main() -> None:
    """Run setuptools' command."""
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    setup(
        ext_modules=[Extension("st3fx.native.libst3fx", sources, optional=True)],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": KernelWheel},
        distclass=KernelDistribution,
    )


# setuptools runs this file as a script; the builder imports it as its backend.
if __name__ == "__main__":
    main()
