"""The build: without a compiler, with one that fails, and which flags it gives."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def build(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``setup.py build_ext`` into a folder of its own."""
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += ["--build-lib", str(target / "lib"), "--build-temp", str(target / "temp")]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def script(path: Path, text: str) -> str:
    """A compiler that is a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("compiler", ["absent", "broken", "refused"])
def test_without_a_working_compiler_one_line_says_so(compiler: str, tmp_path: Path) -> None:
    broken = script(tmp_path / "cxx", 'echo "note: first" >&2; echo "a.cpp: error: no" >&2; exit 1')
    environment, reason = {
        "absent": ({"CXX": str(tmp_path / "nowhere")}, "No such file or directory"),
        "broken": ({"CXX": broken}, "a.cpp: error: no"),
        "refused": ({"ST3FX_NO_KERNELS": "1"}, "ST3FX_NO_KERNELS=1"),
    }[compiler]
    done = build(tmp_path, **environment)
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: st3fx")]
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert not list(tmp_path.rglob("libst3fx.*"))


def test_flags(tmp_path: Path) -> None:
    """A compiler that writes down how it is called and makes empty files."""
    log = tmp_path / "log"
    recorder = script(
        tmp_path / "cxx",
        f'[ "$1" = -dumpmachine ] && {{ echo x86_64-linux-gnu; exit; }}\n'
        f'echo "$@" >> {log}\nfor last; do :; done\n: > "$last"',
    )
    done = build(tmp_path, CXX=recorder, CXXFLAGS="-DOWN")
    assert done.returncode == 0, done.stderr
    calls = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        names = [word for word in line.split() if word.endswith(".cpp")]
        calls[Path(names[0]).name if names else "link"] = line
    sources = {path.name for path in (ROOT / "st3fx/native/src").glob("*.cpp")}
    assert set(calls) == {"link"} | {name for name in sources if "neon" not in name}
    for line in calls.values():
        assert "-DOWN" in line
        assert "-march=native" not in line
        assert "-ffast-math" not in line
    wide = {name for name, line in calls.items() if "-mavx512f" in line}
    assert wide
    assert all("avx512" in name for name in wide)
    assert all("-mavx" not in line for name, line in calls.items() if "avx" not in name)


def test_other_architectures_leave_out_what_is_not_theirs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    recorder = script(
        tmp_path / "cxx",
        f'[ "$1" = -dumpmachine ] && {{ echo aarch64-linux-gnu; exit; }}\n'
        f'echo "$@" >> {log}\nfor last; do :; done\n: > "$last"',
    )
    assert build(tmp_path, CXX=recorder).returncode == 0
    assert "avx" not in log.read_text(encoding="utf-8")
    assert "quant_neondot.cpp" in log.read_text(encoding="utf-8")


def test_zig_is_given_the_features_of_arm_by_its_own_name(tmp_path: Path) -> None:
    """It takes ``-march`` for the name of a CPU, and fails: a wheel for ARM had no kernels."""
    log = tmp_path / "log"
    recorder = script(
        tmp_path / "cxx",
        f'[ "$2" = -dumpmachine ] && {{ echo aarch64-linux-gnu; exit; }}\n'
        f'echo "$@" >> {log}\nfor last; do :; done\n: > "$last"',
    )
    assert build(tmp_path, CXX=f"{recorder} ziglang").returncode == 0
    lines = log.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "-march" in line]
    (dot,) = [line for line in lines if "-c st3fx/native/src/quant_neondot.cpp" in line]
    assert "-mcpu=baseline+dotprod" in dot


@pytest.mark.parametrize(
    ("environment", "asked"),
    [({}, True), ({"CXX": "mine"}, False), ({"ST3FX_NO_KERNELS": "1"}, False)],
    ids=["nothing", "CXX", "refused"],
)
def test_a_machine_without_a_compiler_gets_one_for_the_build(
    environment: dict[str, str], asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.spec_from_file_location("backend", ROOT / "setup.py")
    assert found is not None
    assert found.loader is not None
    backend = importlib.util.module_from_spec(found)
    found.loader.exec_module(backend)
    for name in ("CXX", "ST3FX_NO_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("setuptools.build_meta._BACKEND._get_build_requires", lambda *_, **__: [])

    monkeypatch.setenv("PATH", str(tmp_path))
    assert [name.partition(">")[0] for name in backend.get_requires_for_build_wheel()] == (
        ["ziglang"] if asked else []
    )
    script(tmp_path / "clang++", "exit 0")
    assert backend.get_requires_for_build_wheel() == []
    assert backend.get_requires_for_build_editable() == []
