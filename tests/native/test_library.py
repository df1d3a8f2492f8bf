"""The library: what it says of itself, and what is said where it is missing or wrong."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from st3fx import native
from st3fx.errors import NativeError

ROOT = Path(native.__file__).parent.parent.parent
SOURCES = ROOT / "st3fx" / "native" / "src"


@pytest.fixture(autouse=True)
def _fresh() -> object:
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def test_instruction_sets() -> None:
    available = native.available_isas()
    assert available[-1] == "scalar"
    assert native.isa() == available[0]
    assert [isa for isa in native.ISAS if isa in available] == list(available)


def test_selecting_one() -> None:
    best = native.isa()
    with native.using_isa("scalar"):
        assert native.isa() == "scalar"
    assert native.isa() == best
    with pytest.raises(NativeError, match="no kernels for 'mmx'; it has"), native.using_isa("mmx"):
        pass


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_selects() -> None:
    code = "from st3fx import native; print(native.isa())"
    assert run_python(code, ST3FX_ISA="scalar").stdout.strip() == "scalar"
    refused = run_python(code, ST3FX_ISA="mmx")
    assert "this CPU has no kernels for 'mmx'" in refused.stderr


def test_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "libst3fx.so")
    with pytest.raises(NativeError, match="installed without its CPU kernels"):
        native.load()


def test_no_library_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "libst3fx.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(native, "library_path", lambda: path)
    with pytest.raises(NativeError, match=r"cannot be loaded: .*; build it with"):
        native.load()


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    with pytest.raises(
        NativeError, match=rf"has version {native.ABI - 1}, st3fx needs {native.ABI}"
    ):
        native.load()


def test_the_library_needs_nothing_but_the_compilers_runtime() -> None:
    ctypes.CDLL(str(native.library_path()), mode=os.RTLD_NOW)
    for source in SOURCES.iterdir():
        text = source.read_text(encoding="utf-8")
        assert "onnxruntime_c_api" not in text
        assert "Python.h" not in text


def includes(path: Path, seen: set[Path]) -> set[str]:
    """Names of all system headers that a source includes, directly or not."""
    found = set()
    seen.add(path)
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#include <"):
            found.add(line.removeprefix("#include <").partition(">")[0])
        elif line.startswith('#include "'):
            inner = path.parent / line.removeprefix('#include "').partition('"')[0]
            if inner not in seen:
                found |= includes(inner, seen)
    return found


@pytest.mark.parametrize("source", sorted(SOURCES.glob("isa_*.cpp")), ids=lambda path: path.stem)
def test_instruction_set_files_use_no_templates_of_the_standard_library(source: Path) -> None:
    # The linker keeps one copy of such a template, which may be the one with AVX-512 in it.
    assert includes(source, set()) <= {"cstdint", "cstddef"}
