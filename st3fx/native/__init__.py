"""The library of compiled CPU kernels: finding it, loading it, choosing its instruction set.

The library is built when the package is installed (``setup.py``), by the machine's compiler or one
from the package index; where both fail there is none, and only what needs it fails, with
``NativeError``. Its sources stand in ``src/``.

``ST3FX_ISA`` in the environment chooses an instruction set for the whole process, ``using_isa`` for
a while: kernels keep the one that was current when they were created.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from st3fx.errors import NativeError

ABI = 3
"""What ``st3fx_abi_version()`` of a fitting library gives."""

ISAS = ("avx512vnni", "avx512", "avxvnni", "avx2", "neondot", "neon", "baseline", "scalar")
"""All instruction sets, best first; ``scalar`` is the plain reference."""

_REBUILD = "build it with `python setup.py build_ext --inplace` or by installing st3fx again"


def library_path() -> Path:
    """Where the library lies if it was built."""
    name = "libst3fx.dylib" if sys.platform == "darwin" else "libst3fx.so"
    return Path(__file__).parent / name


@cache
def load() -> ctypes.CDLL:
    """The library, its functions declared.

    Raises:
        NativeError: It was not built, cannot be loaded, or is of another version; the message says
            which. Also where ``ST3FX_ISA`` names what this CPU cannot run.
    """
    path = library_path()
    if not path.exists():
        raise NativeError(
            "st3fx was installed without its CPU kernels (no working C++ compiler was found): "
            f"{_REBUILD}, with g++ or clang++ on the PATH"
        )
    try:
        library = ctypes.CDLL(str(path))
        library.st3fx_abi_version.restype = ctypes.c_int
        version = library.st3fx_abi_version()
    except (OSError, AttributeError) as error:
        raise NativeError(
            f"the kernel library {path} cannot be loaded: {error}; {_REBUILD}"
        ) from error
    if version != ABI:
        raise NativeError(
            f"the kernel library {path} has version {version}, st3fx needs {ABI}: {_REBUILD}"
        )
    library.st3fx_isa.restype = ctypes.c_char_p
    library.st3fx_has_isa.argtypes = [ctypes.c_char_p]
    library.st3fx_select_isa.argtypes = [ctypes.c_char_p]
    if wanted := os.environ.get("ST3FX_ISA"):
        _select(library, wanted)
    return library


def available_isas() -> tuple[str, ...]:
    """The instruction sets that the library has and this CPU can run, best first.

    Raises:
        NativeError: There is no library.
    """
    library = load()
    return tuple(name for name in ISAS if library.st3fx_has_isa(name.encode()))


def isa() -> str:
    """The instruction set that kernels created from now on use.

    Raises:
        NativeError: There is no library.
    """
    name: bytes = load().st3fx_isa()
    return name.decode()


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Kernels that are created inside use the instruction set ``name``, in every thread.

    Raises:
        NativeError: There is no library, or this CPU cannot run that instruction set.
    """
    library = load()
    before = isa()
    _select(library, name)
    try:
        yield
    finally:
        _select(library, before)


def _select(library: ctypes.CDLL, name: str) -> None:
    if not library.st3fx_select_isa(name.encode()):
        possible = ", ".join(i for i in ISAS if library.st3fx_has_isa(i.encode()))
        raise NativeError(f"this CPU has no kernels for {name!r}; it has {possible}")
