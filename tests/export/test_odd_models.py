"""Models that exporters stumble over: they work, or one line says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import st3fx
from st3fx.errors import ExportError
from st3fx.export.zeros import initializers


def output(path: Path, *inputs: Tensor) -> Any:
    session = onnxruntime.InferenceSession(path)
    names = [port.name for port in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]


def assert_same(path: Path, model: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        wanted = model(*inputs).numpy()
    np.testing.assert_allclose(output(path, *inputs), wanted, atol=2e-6 * np.abs(wanted).max())


def captured(path: Path, *, batch: bool) -> nn.Module:
    """A network as ``torch.export`` gives it back."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    shapes = ({0: torch.export.Dim("batch")},) if batch else None
    torch.export.save(torch.export.export(net, (X,), dynamic_shapes=shapes), path)
    return torch.export.load(path).module()


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_a_module_of_torch_export(tmp_path: Path) -> None:
    module = captured(tmp_path / "m.pt2", batch=True)
    model, sparsifier = st3fx.convert(module, X)
    sparsifier.set_sparsity(0.5)
    folded = st3fx.fold(model)
    result = st3fx.export_onnx(folded, X, tmp_path / "m.onnx")
    stored = initializers(onnx.load(result.path))
    zeros = sum(int((stored[name] == 0).sum()) for name in ("0.weight", "2.weight"))
    assert (result.zeros.zeros, result.zeros.elements) == (zeros, 176)
    assert result.zeros.sparsity == pytest.approx(0.5, abs=0.01)
    assert_same(result.path, folded, torch.randn(7, 6))


@pytest.mark.slow
def test_a_module_of_torch_export_for_one_batch(tmp_path: Path) -> None:
    module = captured(tmp_path / "m.pt2", batch=False)
    for reduced in (False, True):
        with pytest.raises(ExportError, match=r"captured for one batch size only: capture it again "
                           r"with a free one, .*dynamic_shapes=.* \(--fixed-batch\)$"):  # fmt: skip
            st3fx.export_onnx(module, X, tmp_path / "m.onnx", eliminate_dead_channels=reduced)
    result = st3fx.export_onnx(module, X, tmp_path / "m.onnx", fixed_batch=True)
    assert_same(result.path, module, X)


class Named(nn.Module):
    """Its forward's arguments, and an output, have the names of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.scale = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))

    def forward(self, weight: Tensor, output: Tensor) -> Any:
        return {"scale": weight @ self.weight * self.scale + output}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"eliminate_dead_channels": True, "opset": 13}],
)
def test_arguments_named_like_parameters(tmp_path: Path, options: dict[str, Any]) -> None:
    model = Named().eval()
    with torch.no_grad():
        model.weight[:5] = 0
    result = st3fx.export_onnx(model, (X, torch.randn(2, 5)), tmp_path / "m.onnx", **options)
    assert [port.name for port in result.inputs] == ["weight", "output"]
    assert [port.name for port in result.outputs] == ["scale"]
    assert (result.zeros.zeros, result.zeros.elements) == (25, 30)
    assert {"weight_inner", "scale_inner"} <= initializers(onnx.load(result.path)).keys()
    x = torch.randn(4, 6), torch.randn(4, 5)
    wanted = model(*x)["scale"].detach().numpy()
    np.testing.assert_allclose(output(result.path, *x), wanted, atol=1e-5)


IMAGES = torch.randn(2, 3, 6, 6).bfloat16()


@pytest.mark.slow
def test_convolutions_of_bfloat16(tmp_path: Path) -> None:
    model, path = nn.Sequential(nn.Conv2d(3, 4, 3)).bfloat16(), tmp_path / "m.onnx"
    with pytest.raises(ExportError, match=r"Conv.* few operators for bfloat16: export the model as "
                       "float32; --no-verify writes it all the same"):  # fmt: skip
        st3fx.export_onnx(model, IMAGES, path)
    assert st3fx.export_onnx(model, IMAGES, path, verify=False).opset == 22
    onnx.checker.check_model(onnx.load(path), full_check=True)
    with pytest.raises(ExportError, match="Conv of bfloat16 is in ONNX from opset 22 on; give"):
        st3fx.export_onnx(model, IMAGES, path, opset=18)


@pytest.mark.slow
def test_inputs_of_bfloat16(tmp_path: Path) -> None:
    """A file that ONNX Runtime takes, but not from Python."""
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="takes and gives no bfloat16 in Python: let the forward"):
        st3fx.export_onnx(nn.Identity(), IMAGES, path)
    result = st3fx.export_onnx(nn.Identity(), IMAGES, path, verify=False)
    assert result.inputs[0].dtype == "BFLOAT16"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 8) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        query, key, value = self.query(x), self.key(x), self.value(x)
        return nn.functional.scaled_dot_product_attention(query, key, value, mask)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, "shared", "own"])
@pytest.mark.parametrize("lead", [(), (3, 2)], ids=["3d", "5d"])
def test_attention_of_any_dimensions(tmp_path: Path, lead: tuple[int, ...], mask: str) -> None:
    def call(batch: int) -> tuple[Tensor, ...]:
        masks = {"shared": torch.randn(5, 5), "own": torch.randn(batch, *lead, 5, 5)}
        return torch.randn(batch, *lead, 5, 4), *([masks[mask]] if mask else [])

    model = Attention()
    result = st3fx.export_onnx(model, call(2), tmp_path / "m.onnx", batch_sizes=(1,))
    assert_same(result.path, model, *call(7))


@pytest.mark.slow
def test_attention_without_a_batch(tmp_path: Path) -> None:
    model, x = Attention(), torch.randn(5, 4)
    result = st3fx.export_onnx(model, x, tmp_path / "m.onnx", fixed_batch=True)
    assert_same(result.path, model, x)


class Branches(nn.Module):
    """A branch on values, as ``torch.cond`` keeps it in a graph."""

    def __init__(self, *, attention: bool = False) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.attention = attention

    def forward(self, x: Tensor) -> Any:
        def left(x: Tensor) -> Tensor:
            y = x[:, 0]
            if self.attention:
                return nn.functional.scaled_dot_product_attention(y, y, y)
            return nn.functional.mish(self.left(x)).mean((2, 3))

        def right(x: Tensor) -> Tensor:
            y = self.right(x).amax((2, 3))
            return x[:, 0] * 2 if self.attention else nn.functional.layer_norm(y, [4])

        return torch.cond(x.sum() > 0, left, right, (x,))


@pytest.mark.slow
@pytest.mark.parametrize("opset", [None, 13, 17])
def test_branches_of_torch_cond(tmp_path: Path, opset: int | None) -> None:
    model, x = Branches(), torch.rand(2, 3, 6, 6)
    with torch.no_grad():
        model.right.weight[:, 1:] = 0
    result = st3fx.export_onnx(model, x, tmp_path / "m.onnx", opset=opset)
    assert (result.zeros.zeros, result.zeros.elements) == (72, 216)
    assert opset in (None, result.opset)
    assert "If" in {node.op_type for node in onnx.load(result.path).graph.node}
    for sign in (1, -1):
        assert_same(result.path, model, sign * torch.rand(5, 3, 6, 6))


@pytest.mark.slow
def test_what_a_branch_cannot_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"aten\.scaled_dot_product_attention, at \S*:\d+: .*; "
                       "give its tensors four dimensions: batch, heads, "):  # fmt: skip
        st3fx.export_onnx(Branches(attention=True), torch.rand(2, 3, 6, 6), tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_named(tmp_path: Path) -> None:
    class Flex(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return flex_attention(x, x, x)

    line = re.escape("ONNX has no form of flex_attention, at ")
    with pytest.raises(ExportError, match=rf"{line}\S*:\d+: .*; call scaled_dot_product_attention"):
        st3fx.export_onnx(Flex().eval(), torch.randn(2, 2, 16, 8), tmp_path / "m.onnx")
