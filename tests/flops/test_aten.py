"""What a model costs as it runs: one-operator nets with closed-form answers, and odd models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from st3fx.errors import FlopsError, InputError
from tests.flops.brute import prune


class Net(nn.Module):
    """A forward with weights."""

    def __init__(self, forward: Callable[..., Any], **weights: Tensor) -> None:
        super().__init__()
        self.run = forward
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def half(*shape: int) -> Tensor:
    """A weight in which every other scalar, in memory's order, is zero."""
    weight = torch.ones(shape)
    weight.view(-1)[::2] = 0
    return weight


def _macs(model: nn.Module, *inputs: Any) -> tuple[int, int]:
    report = st3fx.count_flops(model, inputs)
    assert report.unknown == {}
    return report.dense_macs, report.sparse_macs


R = torch.randn
PRODUCTS: dict[str, tuple[Callable[..., Any], Tensor, tuple[Tensor, ...], int]] = {
    "linear": (lambda m, x: F.linear(x, m.w), half(6, 4), (R(2, 3, 4),), 2 * 3 * 4 * 6),
    "right": (lambda m, x: x @ m.w, half(4, 6), (R(2, 3, 4),), 2 * 3 * 4 * 6),
    "left": (lambda m, x: m.w @ x, half(6, 4), (R(5, 4, 3),), 5 * 6 * 4 * 3),
    "vector": (lambda m, x: x @ m.w, half(4), (R(2, 3, 4),), 2 * 3 * 4),
    "batched": (lambda m, x: torch.bmm(x, m.w), half(2, 4, 6), (R(2, 3, 4),), 2 * 3 * 4 * 6),
    "einsum": (lambda m, x: torch.einsum("bhi,hij->bhj", x, m.w), half(3, 4, 6), (R(2, 3, 4),),
               2 * 3 * 4 * 6),
    "view": (lambda m, x: F.linear(x, m.w.view(6, 4)), half(2, 3, 4), (R(2, 4),), 2 * 24),
    "transposed": (lambda m, x: F.linear(x, m.w.t().contiguous()), half(4, 6), (R(2, 4),), 2 * 24),
    "cast": (lambda m, x: F.linear(x, m.w.double()), half(6, 4), (R(2, 4).double(),), 2 * 24),
    "slices": (lambda m, x: [x @ part for part in m.w.chunk(3)], half(12, 4), (R(2, 4),), 2 * 48),
    "addmm": (lambda m, x: torch.addmm(x, x, m.w), half(4, 4), (R(4, 4),), 4 * 4 * 4),
    "addbmm": (lambda m, x: torch.addbmm(x[0], x, m.w), half(2, 4, 4), (R(2, 4, 4),), 2 * 64),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_weight(name: str) -> None:
    forward, weight, inputs, macs = PRODUCTS[name]
    report = st3fx.count_flops(Net(forward, w=weight), inputs)
    assert (report.dense_macs, report.sparse_macs, report.unknown) == (macs, macs // 2, {})
    row = report.by_layer["w"]
    assert (row.shape, row.parameters) == (tuple(weight.shape), weight.numel())
    assert row.nonzeros == weight.numel() // 2
    assert report.weight_sparsity == 0.5
    assert st3fx.count_flops(Net(forward, w=weight), inputs, "st3").sparse_macs == macs // 2


def test_products_of_activations_count_in_full_but_not_in_st3() -> None:
    net = Net(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v))
    inputs = (R(2, 3, 5, 8), R(2, 3, 7, 8), R(2, 3, 7, 4))
    macs = 2 * 3 * 5 * 7 * (8 + 4)
    assert _macs(net, *inputs) == (macs, macs)
    assert st3fx.count_flops(net, inputs, "st3").dense_macs == 0
    net = Net(lambda m, x, y: torch.einsum("bqd,bkd->bqk", x, y))
    assert _macs(net, R(2, 3, 4), R(2, 5, 4)) == (120, 120)


def test_attention_modules_have_all_their_products() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    length, weights = 5, 4 * 8 * 8 + 2 * 8 * 16
    report = st3fx.count_flops(layer, R(3, length, 8))
    assert report.dense_macs == 3 * length * weights + 3 * 2 * length * length * 8
    assert report.by_layer["self_attn.in_proj_weight"].dense_macs == 3 * length * 3 * 64
    assert report.by_layer["self_attn:attention"].parameters == 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers(kind: Callable[..., nn.RNNBase], directions: int) -> None:
    layer = prune(kind(4, 6, num_layers=2, bidirectional=directions == 2))
    steps, batch = 7, 3
    weights = [p for p in layer.parameters() if p.dim() == 2]
    report = st3fx.count_flops(layer, R(steps, batch, 4))
    assert report.unknown == {}
    assert report.dense_macs == steps * batch * sum(w.numel() for w in weights)
    assert report.sparse_macs == steps * batch * sum(int(w.count_nonzero()) for w in weights)


def test_a_cell_with_its_initial_state() -> None:
    cell = nn.LSTMCell(4, 5)
    assert _macs(cell, R(3, 4))[0] == 3 * (4 + 5) * 20


def test_an_embedding_multiplies_nothing() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    report = st3fx.count_flops(model, torch.zeros(2, 5, dtype=torch.int64))
    row = report.by_layer["0.weight"]
    assert (row.op, row.dense_macs, row.parameters) == ("embedding", 0, 40)
    assert row.weight_bytes == 2 * 5 * 4 * 4
    assert (report.dense_macs, report.weights, report.parameters) == (120, 12, 55)


def test_a_tied_weight_is_used_twice_and_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.embed(x))
            return out

    report = st3fx.count_flops(Tied(), torch.zeros(2, 5, dtype=torch.int64))
    assert list(report.by_layer) == ["embed.weight"]
    row = report.by_layer["embed.weight"]
    assert (row.op, row.parameters, report.parameters) == ("embedding+linear", 40, 40)
    assert report.dense_macs == 2 * 5 * 40
    twice = Net(lambda m, x: F.linear(F.linear(x, m.w), m.w), w=half(4, 4))
    report = st3fx.count_flops(twice, R(3, 4))
    assert (report.dense_macs, report.weights, report.by_layer["w"].calls) == (96, 16, 2)


def test_computed_weights_count_as_they_multiply() -> None:
    layer = nn.Linear(4, 6, bias=False)
    layer.weight.data[:3] = 0
    normed = nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        normed.parametrizations.weight.original0[4] = 0  # the length of a row
        normed.parametrizations.weight.original1[:3] = 1
    report = st3fx.count_flops(normed, R(2, 4))
    assert (report.dense_macs, report.sparse_macs) == (48, 48 - 2 * (3 + 1) * 4)
    assert list(report.by_layer) == ["weight"]


def test_a_converted_model_counts_with_its_effective_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 36, 5))
    x = R(2, 3, 6, 6)
    converted, sparsifier = st3fx.convert(model, x, st3fx.ST3(sparsity=0.8), exclude="2.weight")
    sparsifier.set_sparsity(0.8)
    state = {key: value.clone() for key, value in converted.state_dict().items()}
    report = st3fx.count_flops(converted, x)
    plain = st3fx.count_flops(st3fx.fold(converted), x)
    assert report.by_layer == plain.by_layer
    assert report.sparse_macs < report.dense_macs == plain.dense_macs
    assert report.parameters == sum(p.numel() for p in model.parameters())
    # Over the sites of the conversion, and over what multiplies.
    assert (report.weights, plain.weights) == (216, 216 + 5 * 288)
    assert report.weight_sparsity == pytest.approx(0.8, abs=0.01)
    assert report.parameter_sparsity == plain.parameter_sparsity
    assert all(torch.equal(value, state[key]) for key, value in converted.state_dict().items())


def test_learned_thresholds_are_no_parameters_of_the_model() -> None:
    model = nn.Linear(8, 4)
    converted, _ = st3fx.convert(model, R(2, 8), st3fx.DST(alpha=1e-4))
    assert sum(p.numel() for p in converted.parameters()) > 36
    report = st3fx.count_flops(converted, R(2, 8))
    assert (report.parameters, list(report.by_layer)) == (36, ["weight"])


def test_dead_channels() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    nn.init.ones_(conv.weight)
    conv.weight.data[1] = 0
    conv.weight.data[3:, 1] = 0
    row = st3fx.count_flops(conv, R(1, 4, 5, 5)).by_layer["weight"]
    assert (row.inputs, row.outputs, row.dead_inputs, row.dead_outputs) == (4, 6, 1, 1)
    turned = nn.ConvTranspose2d(4, 6, 3, groups=2)
    nn.init.ones_(turned.weight)
    turned.weight.data[1] = 0
    turned.weight.data[2:, 1] = 0
    row = st3fx.count_flops(turned, R(1, 4, 5, 5)).by_layer["weight"]
    assert (row.inputs, row.outputs, row.dead_inputs, row.dead_outputs) == (4, 6, 1, 1)
    linear = nn.Linear(4, 5)
    nn.init.ones_(linear.weight)
    linear.weight.data[:, 2:] = 0
    row = st3fx.count_flops(linear, R(1, 4)).by_layer["weight"]
    assert (row.inputs, row.outputs, row.dead_inputs, row.dead_outputs) == (4, 5, 2, 0)
    right = Net(lambda m, x: x @ m.w, w=linear.weight.detach().t().contiguous())
    row = st3fx.count_flops(right, R(1, 4)).by_layer["w"]
    assert (row.inputs, row.outputs, row.dead_inputs, row.dead_outputs) == (4, 5, 2, 0)


def test_an_operator_without_a_rule_is_named() -> None:
    report = st3fx.count_flops(Net(lambda m, x: torch.fft.fft(F.relu(x))), R(2, 8))
    assert report.unknown == {"aten::_fft_r2c": 1}
    assert report.to_dict()["unknown"] == {"aten::_fft_r2c": 1}
    assert set(report.by_op) == {"relu"}


def test_the_model_is_left_as_it_was_and_runs_without_values() -> None:
    seen = []
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    model[0].register_forward_hook(lambda module, args, out: seen.append(type(out).__name__))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    st3fx.count_flops(model, R(3, 4))
    assert seen == ["FakeTensor"]
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_code_that_branches_on_values_runs_for_real() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return F.linear(x, m.w) if x.sum() > 0 else x

    assert _macs(Net(forward, w=half(4, 4)), torch.ones(2, 4)) == (32, 16)
    assert _macs(Net(forward, w=half(4, 4)), -torch.ones(2, 4)) == (0, 0)


def test_activations_written_into_a_fresh_tensor_are_no_constant() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        held = torch.zeros(4, 4)
        held[1:] = x[1:]
        return F.linear(held, m.w) if held.sum() > 0 else held

    assert _macs(Net(forward, w=half(4, 4)), torch.ones(4, 4)) == (64, 32)


def test_rows_of_the_batch() -> None:
    model = nn.Linear(4, 4)
    assert st3fx.count_flops(model, R(2, 4), batch=5).dense_macs == 80
    report = st3fx.count_flops(model, {"input": R(2, 4)})
    assert (report.dense_macs, report.inputs) == (32, ((2, 4),))


def test_wrong_calls() -> None:
    with pytest.raises(InputError, match="Linear refuses the example inputs in eval mode: "):
        st3fx.count_flops(nn.Linear(4, 4), R(2, 5))
    with pytest.raises(FlopsError, match="convention 'fvcore': choose exact, st3 or str"):
        st3fx.count_flops(nn.Linear(4, 4), R(2, 4), "fvcore")  # type: ignore[arg-type]
    with pytest.raises(FlopsError, match="batch 0: give a number of samples"):
        st3fx.count_flops(nn.Linear(4, 4), R(2, 4), batch=0)
    with pytest.raises(FlopsError, match=r"model is a int: give an nn\.Module or an ONNX file"):
        st3fx.count_flops(3, R(2, 4))  # type: ignore[arg-type]


ENDS = torch.tensor([1, 1, 6, 8], dtype=torch.int32)
"""Rows by expert: 1, 0, 5, 2."""


def test_a_grouped_product_counts_by_routing() -> None:
    weight = torch.ones(4, 8, 16)
    weight[0] = 0
    weight[2, :, ::2] = 0

    def forward(net: Net, x: Tensor) -> Any:
        ends = (x.sum() * 0).int() + ENDS  # what a router computes from the input
        return F.grouped_mm(x.bfloat16(), net.get_parameter("w").bfloat16(), offs=ends)

    report = st3fx.count_flops(Net(forward, w=weight), (R(8, 8),))
    assert report.unknown == {}
    row = report.by_layer["w"]
    assert row.dense_macs == 8 * 8 * 16
    assert row.sparse_macs == (5 * 8 * 8) + 2 * 8 * 16
    assert (row.dead_outputs, row.nonzeros) == (16 + 8, 2 * 8 * 16 + 8 * 8)


def test_experts_one_after_the_other_count_by_routing() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 6, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Any:
            out = torch.zeros(len(x), 6)
            for index, expert in enumerate(self.experts):
                rows = (x[:, 0].long() == index).nonzero()[:, 0]
                out = out.index_add(0, rows, expert(x[rows]))
            return out

    x = torch.tensor([[0.0], [2.0], [2.0], [2.0], [0.0]]).expand(5, 4)
    report = st3fx.count_flops(Experts(), x)
    assert report.unknown == {}
    macs = {name: row.dense_macs for name, row in report.by_layer.items()}
    assert macs == {f"experts.{i}.weight": n * 24 for i, n in enumerate((2, 0, 3))}
    assert report.by_op["add"].flops == 5 * 6
