"""Channels that become height, width, time or batch, and rules that say nothing of an axis."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st3fx.passes.channels import analyze
from st3fx.passes.channels.analyze import RULES
from st3fx.passes.channels.call import Call
from st3fx.passes.channels.eliminate import eliminate
from st3fx.passes.channels.operand import Role
from tests.passes.channels.nets import Both, Function, emptied, reduced
from tests.passes.channels.programs import EXACT, agree, same
from tests.passes.channels.test_forward import chain, conv, image, sizes


def _turned(x: Tensor) -> Tensor:
    return x.permute(0, 2, 1, 3)


def _full(layer: Any) -> Any:
    """A layer with random weights."""
    return emptied(layer, share=0)


def _line(width: int = 10) -> Tensor:
    return torch.randn(2, width, dtype=torch.float64)


@pytest.mark.parametrize(
    ("reader", "operator"),
    [
        (nn.Conv2d(6, 3, 3, padding=1), "conv2d"),
        (nn.Conv2d(6, 3, 1), "conv2d"),
        (nn.Conv2d(6, 6, 3, groups=6), "conv2d"),
        (nn.ConvTranspose2d(6, 3, 3, 2), "conv_transpose2d"),
        (nn.MaxPool2d(2), "max_pool2d"),
        (nn.AvgPool2d([2]), "avg_pool2d"),  # type: ignore[arg-type]
        (nn.Upsample(scale_factor=2, mode="bilinear"), "upsample_bilinear2d"),
        (Function(lambda x: F.unfold(x, 3)), "im2col"),
        (Function(lambda x: x.cumsum(2)), "cumsum"),
    ],
)
def test_channels_that_become_height_stay(reader: nn.Module, operator: str) -> None:
    """The head sums over them, so that an output of the model is not why."""
    size = _full(reader)(torch.zeros(1, 6, 8, 6).double()).shape[-1]
    model = chain(conv(4, 8, empty=3), _turned, reader, _full(nn.Linear(size, 3)))
    found, kept = sizes(model)
    assert found["0"] == 8
    assert kept == {f"{operator} needs all of them": 3}


def test_height_and_width_of_a_pixel_shuffle_stay() -> None:
    model = chain(conv(4, 8, empty=3), lambda x: x.permute(0, 2, 3, 1)[:, :4],
                  lambda x: F.pixel_shuffle(x, 2), _full(nn.Linear(16, 3)))  # fmt: skip
    assert sizes(model)[1] == {"pixel_shuffle needs all of them": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "reader"),
    [((-1, 1, 64), nn.Conv1d(1, 4, 3)), ((-1, 1, 8, 8), nn.Conv2d(1, 4, 3, padding=1))],
)
def test_features_that_become_a_signal_or_an_image_stay(shape: Any, reader: nn.Module) -> None:
    first = _full(nn.Linear(10, 64))
    with torch.no_grad():
        first.weight[:32] = 0
    model = chain(first, F.relu, lambda x: x.view(shape), _full(reader), lambda x: x.mean(-1))
    assert sizes(model, _line())[0]["0"] == 64


def test_a_linear_layer_on_the_last_axis_before_a_convolution_over_it() -> None:
    first = _full(nn.Linear(10, 16))
    with torch.no_grad():
        first.weight[:8] = 0
    model = chain(first, F.relu, _full(nn.Conv1d(7, 4, 3, padding=1)), lambda x: x.mean(-1))
    found, _ = sizes(model, torch.randn(2, 7, 10, dtype=torch.float64))
    assert found == {"0": 16, "2": 4}


def test_channels_that_become_a_batch_stay() -> None:
    model = chain(conv(4, 8, empty=3), lambda x: x.reshape(-1, 1, 6, 6), conv(1, 2, 3),
                  lambda x: x.mean((1, 2, 3)).view(-1, 8), _full(nn.Linear(8, 2)))  # fmt: skip
    assert sizes(model)[1] == {"view needs all of them": 3}


def test_channels_on_another_axis_that_a_product_carries_still_go() -> None:
    """What a linear layer does not sum over, it does element by element."""
    head = _full(nn.Conv2d(8, 3, 1))
    with torch.no_grad():
        head.weight[:, :3] = 0
    assert sizes(chain(conv(4, 8), _full(nn.Linear(6, 5)), head))[0] == {"0": 5, "1": 5, "2": 3}


@pytest.mark.parametrize(("causal", "left"), [(False, 5), (True, 8)])
def test_positions_of_a_causal_mask_stay(causal: bool, left: int) -> None:
    class Attention(nn.Module):
        """Channels are the queries; keys and values are the image."""

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, y, y, is_causal=causal)

    def attend(x: Tensor, y: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x.flatten(2), y.flatten(2), y.flatten(2),
                                              is_causal=causal)  # fmt: skip

    model = chain(Both(conv(4, 8, empty=3), conv(4, 8), attend), _full(nn.Conv1d(8, 3, 1)))
    with torch.no_grad():
        model[1].weight[:, :3] = 0  # type: ignore[operator]
    assert sizes(model)[0]["0.left"] == left


@pytest.mark.parametrize("dims", [(), (1,), (1, 2, 3)])
def test_a_dimension_that_shrinks_to_one_is_not_squeezed(dims: Any) -> None:
    last = _full(nn.Linear(8, 3))
    with torch.no_grad():
        last.weight[:, 1:] = 0

    def squeezed(x: Tensor) -> Tensor:
        x = x.mean((2, 3), keepdim=True)
        return (x.squeeze(dims) if dims else x.squeeze()).flatten(1)

    model = chain(conv(4, 8), squeezed, last)
    assert agree(model, torch.randn(4, 4, 6, 6).double()).layers[0].outputs == (8, 1)


# Rules that say too little -----------------------------------------------------------------------


def _with(monkeypatch: pytest.MonkeyPatch, rule: Any) -> dict[str, int]:
    """Outputs left of what ``flip`` reads, with a rule for it; it works on the channels."""
    monkeypatch.setitem(RULES, "flip", rule)
    model = chain(conv(4, 8, empty=3, bias=0.0), Function(lambda x: x.flip(1)), conv(8, 6))
    return sizes(model)[0]


def _says_nothing(call: Call) -> Any:
    return call.result([None] * call.x.rank)


def _gives_nothing(call: Call) -> Any:
    call.x.all_carried()
    return call.result([None] * call.x.rank)


def _gives_other_channels(call: Call) -> Any:
    call.x.all_carried()
    return call.result([None, call.coupling.fresh(8), None, None])


def _sums_without_a_product(call: Call) -> Any:
    call.x.summed(1)
    return call.result([None] * call.x.rank)


def _looks_at_no_argument(call: Call) -> Any:
    return call.result([None, call.coupling.fresh(8), None, None])


def _gives_up_in_the_middle(call: Call) -> Any:
    call.coupling.tie(call.x.carried(1), call.coupling.fresh(8))
    call.afterwards(lambda kept: pytest.fail("a note of a rule that gave up"))
    return None


@pytest.mark.parametrize(
    "rule",
    [
        _says_nothing, _gives_nothing, _gives_other_channels, _sums_without_a_product,
        _looks_at_no_argument, _gives_up_in_the_middle,
    ],
)  # fmt: skip
def test_an_axis_that_a_rule_does_not_answer_for_stays(
    monkeypatch: pytest.MonkeyPatch, rule: Any
) -> None:
    assert _with(monkeypatch, rule)["0"] == 8


def test_a_rule_cannot_give_more_channels_than_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(call: Call) -> Any:
        return call.result([None, call.coupling.fresh(7), None, None])

    with pytest.raises(AssertionError, match="axis 1"):
        _with(monkeypatch, rule)


@pytest.mark.slow
def test_all_axes_of_all_operands_are_whole_until_a_rule_asks() -> None:
    model = emptied(nn.Conv2d(4, 8, 3))
    program = torch.export.export(model, (image(),), strict=False)
    graph = program.run_decompositions({}).module()
    assert isinstance(graph, torch.fx.GraphModule)
    found = analyze.Analysis(graph)
    node = next(node for node in graph.graph.nodes if node.op == "call_function")
    call = Call(node, found.facts, found.coupling)
    for name in ("input", "weight", "bias"):
        assert set(call.operand(name).roles) == {Role.WHOLE}


# Constants, numbers and buffers on the way --------------------------------------------------------


NUMBERS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x**2, lambda x: 2.0**x, lambda x: x * 0.1 + 0.3, lambda x: x - 0.7,
    lambda x: x * x.shape[0], lambda x: x.clamp(max=x.shape[0]), lambda x: x / x.shape[0],
    lambda x: F.pad(x, (0, 0, 0, 0, 1, 0), value=0.1)[:, :8],
)  # fmt: skip


@pytest.mark.slow
def test_numbers_that_meet_constants() -> None:
    """Powers, numbers that single precision does not have, and sizes that are free."""
    model = chain(conv(4, 8, empty=3), lambda x: torch.cat([f(x) for f in NUMBERS], 1),
                  conv(64, 6, 3))  # fmt: skip
    assert sizes(model)[0] == {"0": 8, "2": 6}


@pytest.mark.slow
def test_padding_of_two_axes_that_have_channels_leaves_both() -> None:
    first = conv(4, 8, empty=3, bias=0.0)
    padded = Function(lambda x: F.pad(x, (1, 1, 0, 0, 1, 1)))
    model = chain(first, _full(nn.Linear(6, 5)), padded, conv(10, 6), _full(nn.Linear(7, 2)))
    assert sizes(model)[0]["0"] == 8


class _Ordered(nn.Module):
    """The same order of channels twice, in a module of its own; and a count of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(4, 8), conv(8, 6)
        with torch.no_grad():
            self.last.weight[:, :3] = 0
        self.inner = nn.Module()
        self.inner.register_buffer("order", torch.arange(7, -1, -1))
        self.register_buffer("calls", torch.zeros(1).double())

    def forward(self, x: Tensor) -> Tensor:
        order = self.inner.order
        y: Tensor = self.first(x).index_select(1, order).relu().index_select(1, order)
        self.calls.add_(1)  # type: ignore[operator]
        return self.last(y * self.calls) + order.sum()  # type: ignore[no-any-return, operator]


def test_orders_that_are_shared_and_buffers_that_change() -> None:
    model = _Ordered()
    program = torch.export.export(copy.deepcopy(model), (image(),), strict=False)
    graph, report = eliminate(program)
    for _ in range(2):
        x = image()
        with torch.no_grad():
            same(model(x), graph(x), EXACT)
    assert report.layers[0].outputs == (8, 5)


class _Sums(nn.Module):
    """Products whose addend is no vector of its outputs, or whose weight is a vector."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = _full(nn.Linear(10, 8))
        with torch.no_grad():
            self.first.weight[:3] = 0
        self.kind = kind
        self.weight = nn.Parameter(torch.rand(6, 8).double())
        self.bias = nn.Parameter(torch.rand(1, 6).double())

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.kind == "vector":
            return F.linear(y, self.weight[0])
        if self.kind == "number":
            return torch.addmm(self.bias[0, 0], y, self.weight.t())
        return torch.addmm(self.bias, y, self.weight.t())


@pytest.mark.parametrize("kind", ["vector", "number", "row"])
def test_addends_and_weights_of_other_shapes(kind: str) -> None:
    reduced(_Sums(kind), _line())


def test_parts_of_several_types() -> None:
    """A part that goes would take its type along."""

    def joined(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x.half(), y], 1)

    last = _full(nn.Conv2d(16, 6, 1))
    with torch.no_grad():
        last.weight[:, 8:] = 0
    model = chain(Both(conv(4, 8), conv(4, 8), joined), last)
    assert sizes(model)[0]["0.right"] == 8


def test_bits_that_are_seen_as_another_type() -> None:
    model = chain(conv(4, 8, empty=3), lambda x: x.view(torch.int64).double() * 1e-18, conv(8, 6))
    assert sizes(model)[0]["0"] == 8
