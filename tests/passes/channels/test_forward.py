"""Constant channels: what becomes of a filter without a nonzero on its way through operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st3fx.passes.channels import liveness
from tests.passes.channels.nets import Both, Function, Gate, concatenated, emptied, reduced

OUTPUT = "it reaches an output of the model"


def image(width: int = 4, size: int = 6) -> Tensor:
    """A batch of two."""
    return torch.randn(2, width, size, size, dtype=torch.float64)


def conv(width: int, out: int, kernel: int = 1, *, empty: int = 0, bias: float = 0.7,
         **options: Any) -> nn.Conv2d:  # fmt: skip
    """A convolution whose first filters are empty and give ``bias``; padded like its kernel."""
    options.setdefault("padding", kernel // 2)
    layer = nn.Conv2d(width, out, kernel, **options)
    emptied(layer, share=0)
    with torch.no_grad():
        layer.weight[:empty] = 0
        if layer.bias is not None:
            layer.bias[:empty] = bias
    return layer


def sizes(model: nn.Module, x: Tensor | None = None) -> tuple[dict[str, int], dict[str, int]]:
    """Outputs of each layer that are left, and the reasons why constant ones are."""
    _, report = reduced(model.double().eval(), image() if x is None else x)
    left = {layer.name.removesuffix(".weight"): layer.outputs[1] for layer in report.layers}
    return left, report.kept


def chain(*parts: Any) -> nn.Sequential:
    """Modules, and functions between them."""
    return nn.Sequential(*(p if isinstance(p, nn.Module) else Function(p) for p in parts)).eval()


@pytest.mark.parametrize(
    ("bias", "kernel", "left"),
    [
        (0.7, 1, 5),  # into the bias
        (0.7, 3, 6),  # one carries the others' filters
        (-0.7, 3, 5),  # zeros after the activation are no border
    ],
)
def test_a_constant_is_absorbed(bias: float, kernel: int, left: int) -> None:
    first = conv(4, 8, 3, empty=3, bias=bias)
    found, kept = sizes(chain(first, F.relu, conv(8, 6, kernel)))
    assert found == {"0": left, "2": 6}
    assert kept == ({liveness.CARRIER: 1} if left == 6 else {})


def test_a_layer_without_bias_is_given_one() -> None:
    last = emptied(nn.Conv2d(8, 6, 1, bias=False), share=0)
    graph, _ = reduced(chain(conv(4, 8, empty=3), last), image())
    assert set(graph.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert graph.state_dict()["1.weight"].shape == (6, 5, 1, 1)


def test_a_carrier_stands_for_constants_of_all_sizes() -> None:
    first = conv(4, 8, empty=4)
    with torch.no_grad():
        first.bias[:4] = torch.tensor([1e-9, 3.0, -2.0, 0.5])  # type: ignore[index]
    graph, report = reduced(chain(first, conv(8, 6, 3)), image())
    assert report.kept == {liveness.CARRIER: 1}
    assert 3.0 in graph.state_dict()["0.bias"]


def test_a_living_constant_is_the_carrier_of_others() -> None:
    first = conv(4, 8, empty=3)
    graph, report = reduced(
        chain(first, Both(conv(8, 6, 3), Function(lambda x: x[:, :1]), concatenated)), image()
    )
    assert graph.state_dict()["0.weight"].shape[0] == 6
    assert report.kept == {OUTPUT: 1}


@pytest.mark.parametrize(
    "activation", [F.relu, F.silu, F.gelu, torch.sigmoid, torch.exp, nn.PReLU(8)]
)
def test_activations(activation: Callable[[Tensor], Tensor]) -> None:
    assert sizes(chain(conv(4, 8, empty=3), activation, conv(8, 6)))[0]["0"] == 5


def test_batch_norm() -> None:
    norm = nn.BatchNorm2d(8)
    emptied(norm)
    with torch.no_grad():
        norm.weight[7] = 0  # constant, whatever comes in
    assert sizes(chain(conv(4, 8, empty=3), norm, conv(8, 6)))[0]["0"] == 4


@pytest.mark.slow
def test_sums_need_constants_on_both_sides() -> None:
    left, right = conv(4, 8, empty=3), conv(4, 8, empty=2)
    found, kept = sizes(chain(Both(left, right, torch.add), conv(8, 6)))
    assert found == {"0.left": 6, "0.right": 6, "1": 6}
    assert kept == {liveness.READ: 1}


def test_a_residual_channel_goes_from_all_or_from_none() -> None:
    stem, inner = conv(4, 8, empty=3, bias=0.0), conv(8, 8, empty=4)
    block = Both(nn.Identity(), chain(F.relu, inner), torch.add)
    found, kept = sizes(chain(stem, block, F.relu, conv(8, 6)))
    assert found == {"0": 5, "1.right.1": 5, "3": 6}
    assert kept == {liveness.READ: 1}


@pytest.mark.parametrize(("bias", "operators"), [(0.0, 2), (0.5, 3)])
def test_a_branch_that_is_constant_becomes_a_vector(bias: float, operators: int) -> None:
    block = Both(nn.Identity(), chain(conv(8, 8, 3), F.relu, conv(8, 8, 3, empty=8, bias=bias)),
                 torch.add)  # fmt: skip
    graph, report = reduced(chain(conv(4, 8), block, conv(8, 6)), image())
    assert report.operators[1] == operators
    assert [layer.outputs[1] for layer in report.layers] == [8, 0, 0, 6]
    assert not any(name.startswith("1.") for name in graph.state_dict())


def test_a_gate_that_is_constant_becomes_a_vector() -> None:
    gate = Gate(8)
    emptied(gate, share=0)
    nn.init.zeros_(gate.up.weight)
    found, _ = sizes(chain(conv(4, 8), gate, conv(8, 6)))
    assert found == {"0": 8, "1.down": 0, "1.up": 0, "2": 6}


def test_zero_times_anything() -> None:
    gate = Gate(8)
    emptied(gate, share=0)
    found, _ = sizes(chain(conv(4, 8, empty=3, bias=0.0), gate, conv(8, 6)))
    assert found == {"0": 5, "1.down": 3, "1.up": 5, "2": 6}


def test_concatenations_shift() -> None:
    join = Both(conv(4, 8, empty=3), conv(4, 6, empty=2), concatenated)
    found, _ = sizes(chain(join, F.relu, conv(14, 6)))
    assert found == {"0.left": 5, "0.right": 4, "2": 6}


def test_an_empty_part_of_a_concatenation_goes() -> None:
    join = Both(conv(4, 8), conv(4, 6, empty=6), concatenated)
    assert sizes(chain(join, conv(14, 6)))[0] == {"0.left": 8, "0.right": 0, "1": 6}


@pytest.mark.parametrize(("bias", "padding", "left"), [(0.0, 1, 5), (0.7, 0, 5), (0.7, 1, 8)])
def test_depthwise(bias: float, padding: int, left: int) -> None:
    depthwise = conv(8, 8, 3, groups=8, padding=padding)
    found, kept = sizes(chain(conv(4, 8, empty=3, bias=bias), depthwise, conv(8, 6)))
    assert found == {"0": left, "1": left, "2": 6}
    assert kept == ({liveness.BORDER: 3} if left == 8 else {})


@pytest.mark.slow
def test_an_empty_depthwise_filter_takes_its_input_with_it() -> None:
    found, _ = sizes(chain(conv(4, 8), conv(8, 8, 3, groups=8, empty=3), conv(8, 6)))
    assert found == {"0": 5, "1": 5, "2": 6}


def test_groups_stay_equal() -> None:
    first = conv(4, 8)
    with torch.no_grad():
        first.weight[[0, 1, 4]], first.bias[:] = 0, 0.0  # type: ignore[index]
    found, kept = sizes(chain(first, conv(8, 8, groups=2), conv(8, 6)))
    assert found == {"0": 6, "1": 8, "2": 6}
    assert kept == {liveness.GROUPS: 1}


def test_a_dead_group_goes() -> None:
    grouped = conv(8, 8, groups=4, empty=2)
    graph, report = reduced(chain(conv(4, 8), grouped, conv(8, 6)), image())
    assert [layer.outputs[1] for layer in report.layers] == [6, 6, 6]
    assert graph.state_dict()["1.weight"].shape == (6, 2, 1, 1)


@pytest.mark.parametrize(
    ("width", "empty", "left"), [(32, 13, 20), (32, 12, 20), (30, 13, 17), (12, 5, 7)]
)
def test_convolutions_keep_a_multiple_of_four_where_they_had_it(
    width: int, empty: int, left: int
) -> None:
    """All of them the same channels: none is filled up for another's sake."""
    first = conv(4, width, empty=empty)
    depthwise = conv(width, width, 3, groups=width, empty=2, padding=0)
    found, kept = sizes(chain(first, depthwise, conv(width, width), conv(width, 6)))
    assert found == {"0": left, "1": left, "2": width, "3": 6}
    assert kept.get(liveness.ALIGNED, 0) == left - (width - empty)
