"""``st3fx export FILE.int8.onnx --sparse-kernels``, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from st3fx.cli import main
from st3fx.passes.onnx.quant_kernels import lower
from st3fx.runtime.costs import QuantCosts
from tests.passes.onnx.quant_kernels.nets import Net


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with ``net.int8.onnx`` and ``net.onnx`` in it."""
    monkeypatch.chdir(tmp_path)
    costs = QuantCosts(dense=2e-11)
    monkeypatch.setattr(lower, "quant_costs", lambda: costs)
    net = Net("N", 64, 28, 28)
    onnx.save(net.model(net.q(net.conv(net.q("x"), 64, 64, 3), 0.03, 110)), "net.int8.onnx")
    plain = Net("N", 4, 8, 8)
    onnx.save(plain.model(plain.op("Relu", "x")), "net.onnx")
    return tmp_path


def test_a_file_gets_kernels(folder: Path) -> None:
    result = CliRunner().invoke(main, ["export", "net.int8.onnx", "--sparse-kernels"])
    assert result.exit_code == 0, result.output
    assert "1 of 1 layers run by our kernels" in result.output
    assert "wrote net.int8.sparse.onnx" in result.output
    again = ["export", "net.int8.onnx", "--sparse-kernels", "--force", "--json"]
    told = json.loads(CliRunner().invoke(main, again).stdout)
    assert told["path"] == "net.int8.sparse.onnx"
    assert told["size"] == (folder / told["path"]).stat().st_size
    assert told["kernels"]["rows"][0]["is_ours"]
    assert told["difference"] < 0.01


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["net.int8.onnx"], "give --sparse-kernels"),
        (["net.int8.onnx", "--sparse-kernels", "--opset", "17"], "leave out --opset"),
        (["net.onnx", "--sparse-kernels"], "net.onnx is not quantized"),
        (["none.onnx", "--sparse-kernels"], "no file none.onnx"),
        (["net.int8.onnx", "--sparse-kernels", "-o", "net.onnx"], "net.onnx exists"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == 2
    assert reason in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["net.int8.onnx", "net.onnx"]
