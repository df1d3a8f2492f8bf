"""Channels that nothing reads, and those that have to stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st3fx.passes.channels import analyze
from tests.passes.channels.nets import Function, emptied, reduced
from tests.passes.channels.test_forward import chain, conv, image, sizes


def _without_columns(layer: Any, *columns: int) -> Any:
    """A layer that does not read some of its inputs."""
    with torch.no_grad():
        layer.weight[:, list(columns)] = 0
    return layer


def test_what_nothing_reads_goes_with_all_that_it_is_made_of() -> None:
    first, middle = conv(4, 8, 3), conv(8, 8, 3)
    with torch.no_grad():
        middle.weight[2:, :4] = 0  # the first two filters alone read the first four channels
    model = chain(first, F.relu, middle, F.relu, _without_columns(conv(8, 6), 0, 1))
    assert sizes(model)[0] == {"0": 4, "2": 6, "4": 6}


def test_a_channel_of_the_input_stays() -> None:
    graph, _ = reduced(_without_columns(conv(4, 8), 1), image())
    assert graph.state_dict()["weight"].shape == (8, 4, 1, 1)


@pytest.mark.slow
def test_outputs_keep_their_shape() -> None:
    found, kept = sizes(chain(conv(4, 8, empty=3), F.relu))
    assert found == {"0": 8}
    assert kept == {analyze.OUTPUT: 3}


def test_one_channel_stays_where_all_could_go() -> None:
    found, kept = sizes(chain(conv(4, 8), F.relu, conv(8, 6, empty=6)))
    assert found == {"0": 1, "2": 6}
    assert kept == {analyze.OUTPUT: 6}


class Mlp(nn.Module):
    """As in a transformer: layer norm reads all channels, what is between the layers is free."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + y


def test_layer_norm_needs_all() -> None:
    model = emptied(nn.Sequential(nn.Linear(5, 6), Mlp(), nn.Linear(6, 3)), share=0)
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[1].up.weight[:3] = 0
        model[1].down.weight[:, 3:5] = 0
    found, kept = sizes(model, torch.randn(2, 7, 5, dtype=torch.float64))
    assert found == {"0": 6, "1.up": 7, "1.down": 6, "2": 3}
    assert kept == {"layer_norm needs all of them": 2}


class Attention(nn.Module):
    """Heads of four channels each, from one projection per role."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(6, 4 * heads) for _ in range(3))
        self.out = nn.Linear(4 * heads, 6)

    def forward(self, x: Tensor) -> Tensor:
        def split(layer: nn.Module) -> Tensor:
            y: Tensor = layer(x)
            return y.view(x.shape[0], x.shape[1], self.heads, 4).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split(self.q), split(self.k), split(self.v))
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], 4 * self.heads))  # type: ignore[no-any-return]


def test_a_head_that_nothing_reads_goes_whole() -> None:
    model = Attention(3)
    emptied(model, share=0)
    _without_columns(model.out, 4, 5, 6, 7, 8)  # the second head, and one channel of the third
    found, _ = sizes(model, torch.randn(2, 7, 6, dtype=torch.float64))
    assert found == {"q": 8, "k": 8, "v": 8, "out": 6}


class Products(nn.Module):
    """Products that are no layers, with a vector that others use too."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(5, 8)), nn.Parameter(torch.ones(8, 6))
        self.shift, self.alone = nn.Parameter(torch.ones(8)), alone

    def forward(self, x: Tensor) -> Tensor:
        y = torch.mm(x @ self.first + self.shift, self.second)
        return y if self.alone else torch.addmm(self.shift[:6], y, torch.eye(6).double())


@pytest.mark.parametrize(("alone", "left"), [(True, 5), (False, 8)])
def test_products_without_a_bias(alone: bool, left: int) -> None:
    model = Products(alone=alone)
    emptied(model, share=0)
    with torch.no_grad():
        model.first[:, :3] = 0
    graph, report = reduced(model, torch.randn(2, 5, dtype=torch.float64))
    assert [layer.outputs[1] for layer in report.layers][:2] == [left, 6]
    assert ("second_bias" in graph.state_dict()) == alone


class Shared(nn.Module):
    """One convolution twice, and one bias for two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = conv(4, 8, empty=3), conv(8, 8), conv(8, 8)
        self.head.bias = self.twice.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(self.stem(x)).relu()))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_shared_weights_are_cut_once_and_shared_biases_stay() -> None:
    model = Shared()
    with torch.no_grad():
        model.twice.weight[:4] = 0
        model.twice.bias[:4] = 0.25  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, _ = sizes(model)
    assert found["stem"] == found["twice"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_padded_shared_weights_have_no_carrier() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.twice = conv(4, 8, empty=3), conv(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(self.stem(x)))  # type: ignore[no-any-return]

    found, kept = sizes(Twice())
    assert found == {"stem": 8, "twice": 8}
    assert kept == {analyze.OUTPUT: 3}


def test_a_table_loses_columns() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4))
    emptied(model, share=0)
    _without_columns(model[1], 0, 3)
    graph, _ = reduced(model, torch.tensor([[1, 2, 8], [0, 3, 3]]))
    assert graph.state_dict()["0.weight"].shape == (9, 4)


def test_sizes_that_are_read_stay() -> None:
    model = chain(conv(4, 8, empty=3), lambda x: x / x.shape[1], conv(8, 6))
    assert sizes(model)[0] == {"0": 5, "2": 6}  # the number was built in when it was captured


def test_counts() -> None:
    last = emptied(nn.Conv2d(8, 6, 3, padding=1, bias=False), share=0)
    model = chain(conv(4, 8, 3, empty=3, bias=0.0), last)
    _, report = reduced(model, image())
    first, second = report.layers
    assert first.parameters == (4 * 8 * 9, 4 * 5 * 9)
    assert second.macs == (8 * 6 * 9 * 36, 5 * 6 * 9 * 36)
    assert report.parameters == (288 + 8 + 432, 180 + 5 + 270)
    assert (first.constant, report.constant) == (3, 3)
    assert report.macs == (288 * 36 + 432 * 36, 180 * 36 + 270 * 36)
    assert report.to_dict()["layers"][0]["outputs"] == (8, 5)


def test_nothing_to_do() -> None:
    model = chain(conv(4, 8, 3), F.relu, conv(8, 6))
    graph, report = reduced(model, image())
    assert not any(layer.changed for layer in report.layers)
    for name, value in graph.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_an_unknown_operator_needs_all() -> None:
    found, kept = sizes(chain(conv(4, 8, empty=3), Function(lambda x: x.flip(1)), conv(8, 6)))
    assert found == {"0": 8, "2": 6}
    assert kept == {"flip needs all of them": 3}
