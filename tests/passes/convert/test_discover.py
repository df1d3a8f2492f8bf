"""Which parameters become sites, with which layout, and why the others do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from st3fx.errors import PlanError
from st3fx.plan.sites import Layout, Site
from tests.parity import check

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
IMAGE = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(6))
SERIES = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(7))
VOLUME = torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(8))

LAYERS: dict[str, tuple[nn.Module, Tensor, str, Layout, int]] = {
    "linear": (nn.Linear(6, 5), X, "linear", Layout((0,)), 1),
    "linear on 3d": (nn.Linear(9, 5), SERIES, "linear", Layout((0,)), 1),
    "conv1d": (nn.Conv1d(4, 6, 3), SERIES, "conv1d", Layout((0,)), 1),
    "conv2d": (nn.Conv2d(4, 6, 3), IMAGE, "conv2d", Layout((0,)), 1),
    "conv3d": (nn.Conv3d(4, 6, 3), VOLUME, "conv3d", Layout((0,)), 1),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), IMAGE, "conv2d", Layout((0,)), 2),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), IMAGE, "conv2d", Layout((0,)), 4),
    "circular": (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGE, "conv2d", Layout((0,)), 1,
    ),
    "transposed1d": (
        nn.ConvTranspose1d(4, 6, 3), SERIES, "conv_transpose1d", Layout((1,)), 1,
    ),
    "transposed2d": (
        nn.ConvTranspose2d(4, 6, 3, stride=2), IMAGE, "conv_transpose2d", Layout((1,)), 1,
    ),
    "transposed3d": (
        nn.ConvTranspose3d(4, 6, 2), VOLUME, "conv_transpose3d", Layout((1,)), 1,
    ),
    "grouped transposed": (
        nn.ConvTranspose2d(4, 6, 3, groups=2), IMAGE, "conv_transpose2d", Layout((0, 2), 2), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers(layer: tuple[nn.Module, Tensor, str, Layout, int]) -> None:
    module, x, op, layout, groups = layer
    checked = check(module, x)
    (site,) = checked.plan.sites
    assert (site.name, site.op, site.layout, site.groups) == ("weight", op, layout, groups)
    assert site.shape == tuple(module.get_parameter("weight").shape)
    assert not site.computed
    assert checked.plan.skipped == ()


class Raw(nn.Module):
    """Multiplies with a parameter of its own, in one of many ways."""

    def __init__(self, shape: tuple[int, ...], multiply: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9)))
        self.multiply = multiply

    def forward(self, x: Tensor) -> Any:
        return self.multiply(x, self.weight)


BATCHED = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(10))
PRODUCTS: dict[str, tuple[Tensor, tuple[int, ...], Any, tuple[int, ...]]] = {
    "x @ w": (X, (6, 5), lambda x, w: x @ w, (1,)),
    "x @ w.T": (X, (5, 6), lambda x, w: x @ w.T, (0,)),
    "w @ x.T": (X, (5, 6), lambda x, w: (w @ x.T).T, (0,)),
    "matmul": (BATCHED, (6, 5), torch.matmul, (1,)),
    "mm": (X, (6, 5), torch.mm, (1,)),
    "addmm": (X, (6, 5), lambda x, w: torch.addmm(torch.ones(5), x, w), (1,)),
    "bmm": (BATCHED, (2, 6, 5), torch.bmm, (0, 2)),
    "baddbmm": (BATCHED, (2, 6, 5), lambda x, w: torch.baddbmm(torch.ones(5), x, w), (0, 2)),
    "einsum": (BATCHED, (6, 5), lambda x, w: torch.einsum("bti,io->bto", x, w), (1,)),
    "einsum, output first": (BATCHED, (5, 6), lambda x, w: torch.einsum("bti,oi->bto", x, w), (0,)),
    "F.linear": (X, (5, 6), F.linear, (0,)),
    "F.conv1d": (SERIES, (5, 4, 3), F.conv1d, (0,)),
    "F.conv2d": (IMAGE, (6, 2, 3, 3), lambda x, w: F.conv2d(x, w, groups=2), (0,)),
    "a slice of a stack": (X, (2, 6, 5), lambda x, w: x @ w[0] + (x * 2) @ w[1], (2,)),
    "a reshaped weight": (X, (5, 2, 3), lambda x, w: F.linear(x, w.flatten(1)), (0,)),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_products_with_a_parameter(product: Any) -> None:
    x, shape, multiply, channels = product
    checked = check(Raw(shape, multiply), x)
    assert checked.sites == ["weight"]
    assert checked.plan.sites[0].layout.channel_dims == channels
    assert checked.plan.skipped == ()


class Query(nn.Module):
    """A learned query, a vector and a temperature beside a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(4, 6))
        self.vector = nn.Parameter(torch.randn(6))
        self.key = nn.Linear(6, 6, bias=False)
        self.embedding = nn.Embedding(5, 6)
        self.out = nn.Linear(6, 5, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        x = self.embedding(tokens)
        attention = (self.key(self.query) @ x.transpose(1, 2)).softmax(-1)
        y = attention @ x
        return self.out(y) + (y @ self.vector).unsqueeze(-1)


def test_what_stays_dense_says_why() -> None:
    checked = check(Query(), torch.tensor([[0, 1, 2], [3, 4, 0]]))
    assert checked.sites == ["key.weight"]
    assert set(checked.skipped) == {"query", "vector", "embedding.weight"}
    assert checked.skipped["embedding.weight"].startswith("tied: an embedding reads its rows")
    assert checked.skipped["vector"] == "a vector of 6: too few weights to prune"
    assert checked.skipped["query"].startswith("what another weight multiplies, as a learned")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8, bias=False)
        self.same = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.same.weight

    def forward(self, x: Tensor) -> Any:
        y = self.again(self.same(self.up(x)).relu())
        return F.linear(y, self.up.weight.T)  # an auto-encoder, tied by transposition


def test_a_tied_weight_is_one_site_before_and_after_fold() -> None:
    checked = check(Tied(), X)
    up, same = checked.plan.sites
    assert (up.name, up.layout) == ("up.weight", Layout(()))  # outputs of one, inputs of the other
    assert (same.name, same.aliases) == ("same.weight", ("again.weight",))
    assert set(checked.sparsifier.thresholds) == {"up.weight", "same.weight"}
    folded: Any = checked.folded
    assert folded.again.weight is folded.same.weight
    assert sorted(folded.state_dict()) == sorted(Tied().state_dict())


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.tanh(self.fc(x)))


def test_a_module_called_twice_is_one_site() -> None:
    checked = check(Repeated(), X)
    assert checked.sites == ["fc.weight"]
    assert list(checked.islands) == [""]


def test_sites_are_in_the_order_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(6, 6)
            self.first = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Any:
            return self.last(self.first(x))

    assert check(Backwards(), X).sites == ["first.weight", "last.weight"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.LayerNorm(6), nn.ReLU()), "no parameter that feeds a convolution"),
        (Raw((6,), lambda x, w: x @ w), "weight (6,): a vector of 6"),
    ],
)
def test_nothing_to_make_sparse(model: nn.Module, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        st3fx.convert(model, X)
    assert message in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is (deprecated|not supported)")
def test_a_model_that_is_a_script_module_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"only one is left out, weight \(4, 6\): inside a Scrip"):
        st3fx.convert(torch.jit.script(nn.Linear(6, 4)), X)


def test_complex_weights_stay_dense() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.spectrum = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Any:
            return torch.fft.irfft(torch.fft.rfft(self.fc(x)) @ self.spectrum)

    checked = check(Complex(), X)
    assert checked.sites == ["fc.weight"]
    assert "floating-point" in checked.skipped["spectrum"]


def test_a_frozen_weight_is_a_site_and_stays_frozen() -> None:
    model = Repeated()
    model.fc.weight.requires_grad_(False)
    checked = check(model, X)
    assert checked.sites == ["fc.weight"]
    assert not checked.folded.get_parameter("fc.weight").requires_grad


def test_a_site_knows_its_holder() -> None:
    site: Site = check(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), X).plan.sites[0]
    assert site.holders == ("0",)
    assert site.parameters == ("0.weight",)


class Branch(nn.Module):
    """One branch is never taken by the example, one layer is left over."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = nn.Linear(6, 4)
        self.other = nn.Linear(6, 4)
        self.norm = nn.LayerNorm((2, 4))
        self.left = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))

    def forward(self, x: Tensor, flag: bool = False) -> Any:
        return self.other(x) if flag else self.taken(x)


def test_a_layer_that_the_example_does_not_reach_is_named() -> None:
    checked = check(Branch(), X, oracle=False)
    assert checked.sites == ["taken.weight"]
    reason = "does not multiply in the example"
    assert checked.skipped == {"other.weight": reason, "left.0.weight": reason}
