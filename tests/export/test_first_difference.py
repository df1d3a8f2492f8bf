"""A comparison that fails names the first layer that differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import ExportError
from st3fx.export.write import write_model
from st3fx.runtime.layout import SparseWeights, compress
from tests.passes.onnx.graphs import SPARSE_WINS

Change = Callable[[ir.Model], None]


class Net(nn.Module):
    """Layers with batch norm and without, a layer that is called twice, a raw weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.raw = nn.Parameter(torch.randn(16, 8))
        self.twice = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        x = torch.sigmoid(self.body(self.stem(x)))
        x = x.mean((2, 3)) @ self.raw
        return self.twice(torch.tanh(self.twice(x)))


@torch.no_grad()
def net() -> nn.Module:
    model = Net().eval()
    for parameter in (model.body.weight, model.raw):
        parameter.mul_(torch.rand(parameter.shape) < 0.3)
    return model


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def other_operator(old: str, new: str, index: int = 0) -> Change:
    """The file has another operator in the place of one."""

    def change(graph: ir.Model) -> None:
        [node for node in graph.graph if node.op_type == old][index].op_type = new

    return change


def other_values(name: str) -> Change:
    """The file has larger values, with the same zeros."""

    def change(graph: ir.Model) -> None:
        value = graph.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * 1.01, name=name)

    return change


CHANGES = {
    "stem.2 (Abs), by ": other_operator("Relu", "Abs"),
    "stem.1 (Conv), by ": other_values("stem.0.weight"),  # the two are one in the file
    "body (Conv), by ": other_values("body.weight"),
    "Tanh, by ": other_operator("Sigmoid", "Tanh"),
    "raw (MatMul), by ": other_values("raw"),
    "twice (Gemm), by ": other_values("twice.weight"),
    "Sin, by ": other_operator("Tanh", "Sin"),
}
"""What is said -> what was changed in the file."""


@pytest.mark.slow
@pytest.mark.parametrize("layer", CHANGES)
def test_the_layer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    def wrong(graph: ir.Model, path: Path, **options: Any) -> int:
        CHANGES[layer](graph)
        return write_model(graph, path, **options)

    monkeypatch.setattr("st3fx.export.engine.write_model", wrong)
    with pytest.raises(ExportError, match="differ in output at batch 2, given inputs: ") as caught:
        st3fx.export_onnx(net(), IMAGES, tmp_path / "m.onnx")
    assert f"; the first layer that differs is {layer}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("body.weight (SparseConv)", {}),  # a graph without dead channels knows of no modules
        ("body (SparseConv)", {"eliminate_dead_channels": False}),
        ("raw (SparseLinear)", {}),
    ],
)
def test_a_sparse_kernel_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, options: dict[str, Any]
) -> None:
    """Tensors in the layout of the kernels are compared in that of the model."""
    monkeypatch.setattr("st3fx.export.sparse.load_calibration", lambda: SPARSE_WINS)
    rows = (16, 144) if "Conv" in layer else (8, 16)

    def wrong(weight: Any) -> SparseWeights:
        packed = compress(weight)
        if weight.shape == rows:
            packed.values[:] *= 1.01
        return packed

    monkeypatch.setattr("st3fx.passes.onnx.sparse_kernels.emit.compress", wrong)
    with pytest.raises(ExportError, match="ONNX Runtime and PyTorch differ in output") as caught:
        st3fx.export_onnx(net(), IMAGES, tmp_path / "m.onnx", sparse_kernels=True, **options)
    assert f"; the first layer that differs is {layer}, by " in str(caught.value)
    assert not list(tmp_path.iterdir())
