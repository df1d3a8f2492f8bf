"""The batch in another dimension than the first: recurrent layers, time first, and their states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import st3fx
from st3fx import runtime
from st3fx.cli import main
from st3fx.errors import ExportError


class TimeFirst(nn.Module):
    """``x`` is time × batch × features."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0])


class Stateful(nn.Module):
    """``x`` has the batch first, ``state`` second."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor, state: Tensor) -> Any:
        y, state = self.rnn(x, state)
        return self.head(y), state


def assert_same(session: Any, model: nn.Module, *inputs: Tensor) -> None:
    feeds = {port.name: x.numpy() for port, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        wanted = model.eval()(*inputs)
    for given, right in zip(
        session.run(None, feeds), [wanted] if isinstance(wanted, Tensor) else wanted, strict=True
    ):
        np.testing.assert_allclose(given, right.numpy(), atol=1e-5)


SEQUENCE = torch.randn(3, 2, 4)
CALL = torch.randn(2, 3, 4), torch.randn(1, 2, 6)


@pytest.mark.slow
@pytest.mark.parametrize("reduced", [False, True])
def test_time_comes_first(tmp_path: Path, reduced: bool) -> None:
    model = TimeFirst()
    result = st3fx.export_onnx(model, SEQUENCE, tmp_path / "m.onnx", free={"x": {1: "batch"}},
                               eliminate_dead_channels=reduced)  # fmt: skip
    assert result.inputs[0].shape == (3, "batch", 4)
    assert result.outputs[0].shape == (3, "batch", 3)
    assert result.dynamic_batch
    assert [row.batch for row in result.parity] == [2, 1, 3]
    assert_same(onnxruntime.InferenceSession(result.path), model, torch.randn(3, 7, 4))


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [False, True])
def test_a_state_has_the_batch_second(tmp_path: Path, kernels: bool) -> None:
    """The other input has it first, which its size says."""
    model = Stateful()
    result = st3fx.export_onnx(model, CALL, tmp_path / "m.onnx", free={"state": {1: "batch"}},
                               sparse_kernels=kernels)  # fmt: skip
    assert [port.shape for port in result.inputs] == [("batch", 3, 4), (1, "batch", 6)]
    session = runtime.session(result.path)
    assert_same(session, model, torch.randn(7, 3, 4), torch.randn(1, 7, 6))


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\nclass Net(nn.LSTM):\n    def __init__(self):\n"
        "        super().__init__(4, 6)\n    def forward(self, x):\n"
        "        return super().forward(x)[0]\n"
    )
    done = CliRunner().invoke(main, ["export", "net.py", "-i", "3x2x4", "--allow-dense",
                                     "--free", "input:1=batch"])  # fmt: skip
    assert done.exit_code == 2
    assert "free size input:1=batch: the inputs are x" in done.stderr
    done = CliRunner().invoke(main, ["export", "net.py", "-i", "3x2x4", "--allow-dense",
                                     "--free", "x:1=batch"])  # fmt: skip
    assert done.exit_code == 0, done.output
    (port,) = onnxruntime.InferenceSession("net.onnx").get_inputs()
    assert port.shape == [3, "batch", 4]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "inputs"), [(TimeFirst(), SEQUENCE), (Stateful(), CALL)])
def test_where_it_is_not_said_the_error_says_how(
    tmp_path: Path, model: nn.Module, inputs: Any
) -> None:
    with pytest.raises(ExportError, match=r"say so \(--free INPUT:DIM=batch\)"):
        st3fx.export_onnx(model, inputs, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
