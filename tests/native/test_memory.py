"""What kernels keep between calls."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from st3fx import native

SOURCES = Path(native.__file__).parent / "src"


def test_working_memory_and_sizes(tmp_path: Path) -> None:
    """Buffers that nothing needs go, sizes that come again stay, and the end is no crash."""
    program = tmp_path / "memory"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run(
        [*compiler, "-std=c++17", "-O1", "-pthread", "-I", str(SOURCES),
         str(Path(__file__).with_name("memory.cpp")), str(SOURCES / "scratch.cpp"),
         "-o", str(program)],
        check=True,
    )  # fmt: skip
    for _ in range(3):
        done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")
