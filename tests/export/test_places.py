"""The same model gives the same file, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from st3fx.cli.app import main
from tests.models import TINY, write


@pytest.mark.slow
def test_a_file_does_not_depend_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for name in ("one", "another/place"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write(folder, "model.py", TINY)
        monkeypatch.chdir(folder)
        line = ["export", "model.py", "--sparsity", "0.5", "-o", "net.onnx"]
        done = CliRunner().invoke(main, line, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        written.append((folder / "net.onnx").read_bytes())
    assert written[0] == written[1]
    assert b"st3fx_user" not in written[0]
