"""Counts do not depend on the mode they are made in, nor on how a weight is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import parametrizations, prune

import st3fx
from tests.flops.brute import prune as zeroed


class Small(nn.Module):
    """Composite operators of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.lstm(y)[0])
        return torch.einsum("btc,btc->btc", out, out)


class Inside(Small):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def counts(model: nn.Module, *inputs: Any) -> tuple[Any, ...]:
    report = st3fx.count_flops(model, inputs)
    return (report.dense_macs, report.sparse_macs, report.unknown, report.by_op,
            [(row.name, row.op, row.nonzeros) for row in report.by_layer.values()])  # fmt: skip


def test_inference_mode_around_a_count_changes_nothing() -> None:
    model, x = zeroed(Small()), torch.randn(2, 3, 6, 6)
    wanted = counts(model, x)
    assert wanted[2] == {}
    with torch.inference_mode():
        assert counts(model, x) == wanted
        assert counts(model, torch.randn(2, 3, 6, 6)) == wanted
    inside = zeroed(Inside())
    assert counts(inside, x) == wanted


def count_call(module: nn.Module, args: Any) -> None:
    module.get_buffer("calls").add_(1)


def test_a_model_that_was_made_under_inference_mode() -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        model = zeroed(Small())
        model.register_buffer("calls", torch.zeros(()))
        model.register_forward_pre_hook(count_call)
        model.tied = model.head
    names = [p for _, p in model.named_parameters()]
    wanted = counts(zeroed(Small()), torch.randn(2, 3, 6, 6))
    assert counts(model, torch.randn(2, 3, 6, 6)) == wanted
    after = [p for _, p in model.named_parameters()]
    assert all(old is new for old, new in zip(names, after, strict=True))
    assert int(model.get_buffer("calls")) == 0


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", ["coo", "csr", "negative"])
def test_weights_that_are_kept_sparse(kind: str) -> None:
    weight = torch.tensor([[1.0, 0, 0], [0, -2, 0]])
    keep: dict[str, Callable[[Tensor], Tensor]] = {
        "coo": Tensor.to_sparse, "csr": Tensor.to_sparse_csr, "negative": lambda w: w * -1.0
    }  # fmt: skip
    kept = keep[kind](weight)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(kept)

        def forward(self, x: Tensor) -> Tensor:
            more = torch.sparse.mm(self.w, x) if kind != "negative" else self.w @ x
            return self.w @ x + more + F.linear(x.t(), self.w).t()

    report = st3fx.count_flops(Net(), torch.randn(3, 5))
    assert (report.dense_macs, report.sparse_macs, report.unknown) == (3 * 30, 3 * 10, {})
    assert (report.weights, report.weight_nonzeros, report.parameters) == (6, 2, 6)


@pytest.mark.slow
def test_masks_of_torch_prune_are_zeros_of_the_weight(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4))
        prune.l1_unstructured(model[0], "weight", 0.75)
        prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
        prune.random_unstructured(model[2], "bias", 1)
        return model

    model, x = net(), torch.randn(1, 3, 6, 6)
    expected = model(x)
    report = st3fx.count_flops(model, x)
    assert list(report.by_layer) == ["0.weight", "2.weight"]
    zeros = 162 + 2 * 128
    assert (report.weights, report.weights - report.weight_nonzeros) == (216 + 512, zeros)
    assert report.parameters == 216 + 8 + 512 + 4
    result = st3fx.export_onnx(model, x, tmp_path / "m.onnx")
    assert result.zeros.zeros == zeros
    found = st3fx.count_flops(result.path)
    assert (found.sparse_macs, found.weight_sparsity) == (
        report.sparse_macs,
        report.weight_sparsity,
    )
    assert torch.equal(model(x), expected)
    assert prune.is_pruned(model)


def test_what_is_written_to_counts_as_it_was_when_it_multiplied() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 4))
            self.register_buffer("kept", torch.zeros(4, 4))
            self.register_buffer("mask", torch.eye(4))

        def forward(self, x: Tensor) -> Tensor:
            kept = self.get_buffer("kept")
            kept.copy_(self.w * self.get_buffer("mask"))
            x = F.linear(x, kept)
            kept.copy_(self.w)
            return F.linear(x, kept)

    report = st3fx.count_flops(Net(), torch.randn(2, 4))
    assert report.sparse_macs == 2 * 4 + 2 * 16


class Merged(nn.Module):
    """A low-rank update of a weight: both have zeros in the same rows."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(8, 6))
        self.a, self.b = nn.Parameter(torch.ones(2, 6)), nn.Parameter(torch.ones(8, 2))
        with torch.no_grad():
            self.w[:4], self.b[:4] = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w + self.b @ self.a)


@pytest.mark.slow
def test_a_weight_that_is_a_product_of_weights_has_the_zeros_of_its_values(tmp_path: Path) -> None:
    model, x = Merged(), torch.randn(3, 6)
    report = st3fx.count_flops(model, x)
    # The update is computed in each call: 8 · 2 · 6, and so is the layer.
    assert (report.dense_macs, report.sparse_macs) == (96 + 3 * 48, 96 + 3 * 24)
    # Of rows that lie apart torch makes a batch, and a copy of the weight for each of its matrices.
    batch = torch.randn(2, 3, 6).transpose(0, 1)
    found = st3fx.count_flops(model.requires_grad_(requires_grad=False), batch)
    assert (found.dense_macs, found.sparse_macs) == (96 + 6 * 48, 96 + 6 * 24)
    st3fx.export_onnx(model, x, tmp_path / "m.onnx")
    found = st3fx.count_flops(tmp_path / "m.onnx", [(3, 6)])
    assert (found.dense_macs, found.sparse_macs) == (report.dense_macs, report.sparse_macs)


@pytest.mark.slow
def test_spectral_norm_and_weight_norm(tmp_path: Path) -> None:
    wraps: tuple[Callable[..., nn.Module], ...] = (
        parametrizations.spectral_norm, nn.utils.spectral_norm, parametrizations.weight_norm
    )  # fmt: skip
    layers = [zeroed(nn.Linear(6, 6), seed=seed) for seed in range(3)]
    convolution = zeroed(nn.Conv1d(6, 6, 1), seed=3)
    nonzeros = [
        int(layer.get_parameter("weight").count_nonzero()) for layer in (*layers, convolution)
    ]
    wrapped = [wrap(layer) for wrap, layer in zip(wraps, layers, strict=True)]
    model = nn.Sequential(*wrapped, nn.Unflatten(1, (6, 1)), wraps[0](convolution)).eval()
    report = st3fx.count_flops(model, torch.randn(3, 6))
    assert (report.dense_macs, report.sparse_macs) == (3 * 36 * 4, 3 * sum(nonzeros))
    assert [row.nonzeros for row in report.by_layer.values()] == nonzeros
    st3fx.export_onnx(model, torch.randn(3, 6), tmp_path / "m.onnx", verify=False)
    found = st3fx.count_flops(tmp_path / "m.onnx", [(3, 6)])
    assert (found.dense_macs, found.sparse_macs) == (report.dense_macs, report.sparse_macs)
    assert (found.weights, found.weight_nonzeros) == (144, sum(nonzeros))


class Calls(nn.Module):
    """Operators that call functions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b = kind, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "cond":
            return torch.cond(x.sum() > 1e9, self.a, lambda y: self.b(self.b(y)), (x,))
        if self.kind == "while":
            return while_loop(
                lambda i, y: i < 5, lambda i, y: (i + 1, self.a(y)), (torch.tensor(0), x)
            )
        if self.kind == "scan":
            return scan(lambda c, y: (self.a(c) + y, self.b(c)), torch.zeros(8), x)
        if self.kind == "map":
            return torch_map(self.a, x)
        q = self.a(x).view(1, 2, 4, 4)
        return flex_attention(q, q, q)


@pytest.mark.parametrize(
    ("kind", "macs", "names"),
    [
        ("cond", 2 * 256, ["b.weight"]),
        ("while", 5 * 256, ["a.weight"]),
        ("scan", 2 * 256, ["a.weight", "b.weight"]),
        ("map", 256, ["a.weight"]),
        ("flex", 256 + 2 * 2 * 4 * 4 * 4, ["a.weight", ":matmul"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_operators_that_call_functions(kind: str, macs: int, names: list[str]) -> None:
    report = st3fx.count_flops(Calls(kind), torch.randn(4, 8))
    assert (report.dense_macs, report.unknown, list(report.by_layer)) == (macs, {}, names)


def test_a_module_of_torch_export() -> None:
    model, x = (
        zeroed(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())),
        torch.ones(1, 3, 5, 5),
    )
    exported = torch.export.export(model, (x,)).module()
    assert counts(exported, x)[:3] == counts(model, x)[:3]


def test_a_weight_that_is_expanded_to_a_batch_has_its_channels_once() -> None:
    layer = nn.Linear(4, 6)
    with torch.no_grad():
        layer.weight[2], layer.weight[:, 1] = 0, 0
    x = torch.randn(2, 5, 4).transpose(0, 1)  # whose rows do not lie one after the other
    for needs in (True, False):
        row = st3fx.count_flops(layer.requires_grad_(needs), x).by_layer["weight"]
        assert (row.inputs, row.outputs, row.dead_inputs, row.dead_outputs) == (4, 6, 1, 1)
        assert (row.dense_macs, row.sparse_macs) == (10 * 24, 10 * 15)
