"""How often each weight multiplies in the example, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx


class Function(nn.Module):
    """A forward around one parameter."""

    def __init__(self, shape: tuple[int, ...], run: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(x, self.weight)


def costs(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    _, sparsifier = st3fx.convert(model, inputs, verify=False)
    return {site.name: site.cost for site in sparsifier.plan.sites}


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    # A weight of a convolution multiplies once for each position of the output...
    "conv2d": (nn.Conv2d(3, 8, 3), (2, 3, 10, 12), 2 * 8 * 10),
    "padding": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 10, 12), 2 * 10 * 12),
    "stride": (nn.Conv2d(3, 8, 3, stride=(2, 3)), (2, 3, 10, 12), 2 * 4 * 4),
    "dilation": (nn.Conv2d(3, 8, 3, dilation=2), (1, 3, 10, 12), 6 * 8),
    "groups": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 10, 12), 2 * 8 * 10),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, bias=False), (2, 6, 5, 5), 2 * 3 * 3),
    "conv1d": (nn.Conv1d(3, 8, 5), (2, 3, 20), 2 * 16),
    "conv3d": (nn.Conv3d(3, 8, 2), (1, 3, 4, 5, 6), 3 * 4 * 5),
    # ... of the input if it is transposed.
    "transposed": (nn.ConvTranspose2d(3, 8, 3, stride=2), (2, 3, 5, 6), 2 * 5 * 6),
    "grouped transposed": (nn.ConvTranspose2d(4, 8, 3, groups=2), (2, 4, 5, 6), 2 * 5 * 6),
    "transposed 1d": (nn.ConvTranspose1d(3, 8, 4, stride=4), (2, 3, 7), 2 * 7),
    # A matrix product: once for each row.
    "linear": (nn.Linear(5, 7), (6, 5), 6),
    "linear without bias": (nn.Linear(5, 7, bias=False), (6, 5), 6),
    "linear on a sequence": (nn.Linear(5, 7), (2, 11, 5), 2 * 11),
    "linear on images": (nn.Linear(5, 7, bias=False), (2, 3, 4, 5), 2 * 3 * 4),
    "linear on a vector": (nn.Linear(5, 7), (5,), 1),
}


@pytest.mark.parametrize(("layer", "shape", "expected"), LAYERS.values(), ids=LAYERS)
def test_layers(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert costs(layer, torch.randn(shape)) == {"weight": expected}


PRODUCTS: dict[str, tuple[tuple[int, ...], Any, tuple[int, ...], int]] = {
    "on the right": ((5, 7), lambda x, w: x @ w, (6, 5), 6),
    "on the right of a sequence": ((5, 7), lambda x, w: x @ w, (2, 11, 5), 2 * 11),
    "on the left": ((7, 5), lambda x, w: w @ x, (5, 6), 6),
    "on the left, transposed": ((5, 7), lambda x, w: w.T @ x, (5, 6), 6),
    "on the left of a batch": ((7, 5), lambda x, w: w @ x, (3, 5, 6), 3 * 6),
    "mm": ((5, 7), torch.mm, (6, 5), 6),
    "addmm": ((5, 7), lambda x, w: torch.addmm(torch.zeros(7), x, w), (6, 5), 6),
    "bmm": ((3, 5, 7), torch.bmm, (3, 6, 5), 6),
    "bmm on the left": ((3, 7, 5), lambda x, w: torch.bmm(w, x), (3, 5, 6), 6),
    "baddbmm": (
        (3, 5, 7), lambda x, w: torch.baddbmm(torch.zeros(3, 6, 7), x, w), (3, 6, 5), 6,
    ),
    "einsum": ((5, 7), lambda x, w: torch.einsum("bij,jk->bik", x, w), (2, 6, 5), 2 * 6),
    "functional linear": ((7, 5), F.linear, (4, 6, 5), 4 * 6),
    "twice": ((5, 5), lambda x, w: (x @ w) @ w, (6, 5), 2 * 6),
    "two ways": ((5, 5), lambda x, w: F.linear(x @ w, w[:, :5]), (6, 5), 2 * 6),
    "functional convolution": ((8, 3, 3, 3), F.conv2d, (2, 3, 10, 12), 2 * 8 * 10),
}  # fmt: skip


@pytest.mark.parametrize(("weight", "run", "shape", "expected"), PRODUCTS.values(), ids=PRODUCTS)
def test_products(weight: tuple[int, ...], run: Any, shape: tuple[int, ...], expected: int) -> None:
    assert costs(Function(weight, run), torch.randn(shape)) == {"weight": expected}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_multiply_once_for_each_element(kind: Any, batch_first: bool) -> None:
    layer = kind(8, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
    expected = {name: 4 * 5 for name, p in layer.named_parameters() if p.dim() == 2}
    assert len(expected) == 8
    assert costs(layer, torch.randn(4, 5, 8)) == expected


def test_a_recurrent_cell_multiplies_once_for_each_call() -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(8, 6)

        def forward(self, x: Tensor) -> Any:
            state = self.cell(x[:, 0])
            return self.cell(x[:, 1], state)

    expected = {"cell.weight_ih": 2 * 3, "cell.weight_hh": 2 * 3}
    assert costs(Unrolled(), torch.randn(3, 2, 8)) == expected


def test_attention() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 5, 8)
    assert costs(layer, x, x, x) == {"in_proj_weight": 3 * 5, "out_proj.weight": 3 * 5}


def test_a_tied_weight_counts_all_of_its_uses() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(5, 5)
            self.other = nn.Linear(5, 5)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Any:
            return self.other(self.one(x).mean(1))

    assert costs(Tied(), torch.randn(2, 7, 5)) == {"one.weight": 2 * 7 + 2}


def test_the_total_is_what_a_counter_of_operations_says() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from st3fx.models import resnet20

    torch.manual_seed(0)
    model = resnet20()
    x = torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(x)
    _, sparsifier = st3fx.convert(model, x, verify=False)
    total = sum(site.cost * site.numel for site in sparsifier.plan.sites)
    assert 2 * total == counter.get_total_flops()
