"""Einsums count alike as they run and as a graph has them, and as brute force does."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import st3fx
from tests.flops.graphs import graph, saved

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5}


class Net(nn.Module):
    def __init__(self, equation: str, shape: list[int]) -> None:
        super().__init__()
        self.equation = equation
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(shape) * (torch.rand(shape) < 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, self.w)


def brute(equation: str, weight: Tensor) -> tuple[int, int]:
    """One multiplication for every combination of indices, after sums over one operand alone."""
    left, right = equation.split("->", maxsplit=1)[0].split(",")
    result = equation.split("->")[1]
    kept = [c for c in dict.fromkeys(right) if c in left or c in result]
    alone = [c for c in dict.fromkeys(right) if c not in kept]
    others = [c for c in dict.fromkeys(left) if c in result and c not in kept]
    repeat = math.prod(SIZES[c] for c in others)
    dense = sparse = 0
    for places in itertools.product(*(range(SIZES[c]) for c in kept)):
        at = dict(zip(kept, places, strict=True))
        sums = itertools.product(*(range(SIZES[c]) for c in alone))
        found = [weight[tuple({**at, **dict(zip(alone, s, strict=True))}[c] for c in right)]
                 for s in sums]  # fmt: skip
        dense += repeat
        sparse += repeat * any(value != 0 for value in found)
    return dense, sparse


EQUATIONS = ("ab,bc->ac", "ab,b->ab", "ab,bb->ab", "ab,bcd->ac", "ab,cd->ac", "ab,ab->ab",
             "ab,ab->a", "ab,->ab", "ab,cb->abc", "ab,bcb->ac", "ab,cc->ab", "ab,c->a")  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_both_routes_and_brute_force_agree(equation: str, tmp_path: Path) -> None:
    left, right = equation.split("->", maxsplit=1)[0].split(",")
    model = Net(equation, [SIZES[c] for c in right])
    x = torch.randn([SIZES[c] for c in left])
    found = st3fx.count_flops(model, x)
    assert (found.dense_macs, found.sparse_macs) == brute(equation, model.w)
    assert found.unknown == {}
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation=equation)
    path = saved(graph([node], {"x": x.shape}, {"w": model.w.detach().numpy()}), tmp_path)
    file = st3fx.count_flops(path)
    assert (file.dense_macs, file.sparse_macs, file.by_op) == (
        found.dense_macs, found.sparse_macs, found.by_op
    )  # fmt: skip
    assert file.by_layer["w"] == found.by_layer["w"]


def test_the_channels_of_an_einsum() -> None:
    model = Net("abc,bcd->abd", [3, 4, 5])  # three groups, four inputs, five outputs
    with torch.no_grad():
        model.w.fill_(1.0)
        model.w[0, 1], model.w[2, :, 3], model.w[1] = 0, 0, 0
    row = st3fx.count_flops(model, torch.randn(2, 3, 4)).by_layer["w"]
    assert (row.inputs, row.outputs) == (12, 15)
    assert (row.dead_inputs, row.dead_outputs) == (1 + 4, 1 + 5)


@pytest.mark.parametrize("form", ["list", "sublists", "operator", "dots"])
def test_every_way_to_call_it(form: str) -> None:
    class Called(Net):
        def forward(self, x: Tensor) -> Tensor:
            if form == "list":
                return torch.einsum("ab,b->ab", [x, self.w])
            if form == "sublists":
                return torch.einsum(x, [0, 1], self.w, [1], [0, 1])
            if form == "operator":
                out: Tensor = torch.ops.aten.einsum("ab,b->ab", [x, self.w])
                return out
            return torch.einsum("...b,b->...b", x, self.w)

    model = Called("", [3])
    report = st3fx.count_flops(model, torch.randn(2, 3))
    assert (report.dense_macs, report.by_layer["w"].op) == (6, "einsum")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_an_einsum_of_a_script_under_inference_mode() -> None:
    class Scripted(Net):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.jit.script(_times)(x, self.w)
            return out

    report = st3fx.count_flops(Scripted("", [3]), torch.randn(2, 3))
    assert (report.dense_macs, report.by_layer["w"].op) == (6, "einsum")


def _times(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("ab,b->ab", x, w)


def test_the_order_of_more_operands_is_that_of_the_call() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            out: Tensor = torch.ops.aten.einsum("ab,bc,cd->ad", [x, y, z], path=[1, 2, 0, 1])
            return out

    inputs = torch.randn(2, 3), torch.randn(3, 5), torch.randn(5, 7)
    assert st3fx.count_flops(Three(), inputs).dense_macs == 3 * 5 * 7 + 2 * 3 * 7


def test_einsums_in_vmap_count_for_every_sample() -> None:
    model = Net("b,bc->c", [3, 4])
    mapped = type("Mapped", (Net,), {"forward": lambda self, x: torch.vmap(
        lambda row: torch.einsum(self.equation, row, self.w))(x)})("b,bc->c", [3, 4])  # fmt: skip
    nonzeros = int(model.w.count_nonzero())
    assert st3fx.count_flops(mapped, torch.randn(7, 3)).sparse_macs == 7 * nonzeros


@pytest.mark.slow
def test_a_repeated_product_is_exported_as_often_as_it_runs(tmp_path: Path) -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 3))
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            product = (x @ self.w + self.w[0]) * (x @ self.w + self.w[0])
            return product + torch.add(self.head(x), self.head(x))

    model, x = Repeated(), torch.randn(2, 3)
    path = tmp_path / "m.onnx"
    st3fx.export_onnx(model, x, path)
    assert st3fx.count_flops(path, [(2, 3)]).dense_macs == 4 * 18
    assert st3fx.count_flops(model, x).dense_macs == 4 * 18
    assert not any(
        a.name.startswith("st3fx") for n in onnx.load(path).graph.node for a in n.attribute
    )
    assert np.isfinite(onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0])).all()
