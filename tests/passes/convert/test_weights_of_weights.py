"""Products of parameters alone: a computed weight, or a layer on a learned input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from tests.parity import check, require_same

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))


class Merged(nn.Linear):
    """LoRA in its merged form."""

    def __init__(self) -> None:
        super().__init__(8, 5)
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * (self.b @ self.a), self.bias)


@pytest.mark.parametrize("verify", [False, True])
def test_a_merged_adapter_is_one_weight_of_all_its_factors(verify: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Merged())
    checked = check(model, X, oracle=False, verify=verify)
    (_, site) = checked.plan.sites
    assert (site.name, site.computed) == ("1.weight", True)
    assert set(site.parameters) == {"1.weight", "1.a", "1.b"}
    assert checked.skipped == {}
    folded: Any = checked.folded
    assert type(folded[1]) is nn.Linear
    assert (folded[1].weight == 0).float().mean() == pytest.approx(0.5, abs=0.3)


class Raw(nn.Module):
    """A layer, and a function of its output and raw parameters."""

    def __init__(self, use: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(4)
        self.fc = nn.Linear(8, 8)
        self.w = nn.ParameterList([torch.randn(shape, generator=make) / 3 for shape in shapes])
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(self.fc(x), *self.w)


COMPUTED: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "W + B A": (lambda x, w, b, a: F.linear(x, w + b @ a), ((5, 8), (5, 2), (2, 8))),
    "x @ (W + A B)": (lambda x, w, a, b: x @ (w + a @ b), ((8, 5), (8, 2), (2, 5))),
    "(W + B A) on the left": (
        lambda x, w, b, a: ((w + b @ a) @ x.T).T, ((5, 8), (5, 2), (2, 8))
    ),
    "in batches": (
        lambda x, w, b, a: torch.bmm(x.expand(3, 4, 8), w + b @ a),
        ((3, 8, 5), (3, 8, 2), (3, 2, 5)),
    ),
    "of a convolution": (
        lambda x, w, b, a: F.conv1d(x[..., None], w + (b @ a)[..., None]),
        ((5, 8, 1), (5, 2), (2, 8)),
    ),
    "two factors": (lambda x, b, a: F.linear(x, b @ a), ((5, 2), (2, 8))),
    "two factors, on the right": (lambda x, a, b: x @ (a @ b), ((8, 2), (2, 5))),
    "three factors": (lambda x, c, b, a: F.linear(x, c @ b @ a), ((5, 2), (2, 2), (2, 8))),
    "normalised": (
        lambda x, w, b, a: F.linear(x, F.normalize(w + b @ a, dim=1)), ((5, 8), (5, 2), (2, 8))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPUTED.values(), ids=COMPUTED)
def test_no_factor_of_a_weight_is_a_site(case: Any) -> None:
    use, shapes = case
    checked = check(Raw(use, *shapes), X)
    assert checked.sites == ["fc.weight"]
    assert set(checked.skipped) == {f"w.{index}" for index in range(len(shapes))}
    assert all(r.startswith("computed before it multiplies") for r in checked.skipped.values())


INPUTS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "queries": (lambda x, q, w: ((q @ w) @ x.T).softmax(-1) @ x, ((3, 8), (8, 8))),
    "queries of a batch": (
        lambda x, q, w: ((q @ w) @ x.view(2, 2, 8).mT).softmax(-1),
        ((3, 8), (8, 8)),
    ),
    "keys": (lambda x, q, w: (x @ (q @ w).T).softmax(-1) @ q, ((3, 8), (8, 8))),
    "through a nonlinearity": (lambda x, q, w: x @ (q @ w).tanh(), ((8, 8), (8, 5))),
}


@pytest.mark.parametrize("case", INPUTS.values(), ids=INPUTS)
def test_a_weight_that_multiplies_a_learned_input_is_a_site(case: Any) -> None:
    use, shapes = case
    checked = check(Raw(use, *shapes), X)
    assert checked.sites == ["fc.weight", "w.1"]
    assert list(checked.skipped) == ["w.0"]
    assert checked.skipped["w.0"].startswith("what another weight multiplies, as a learned")


class Latents(nn.Module):
    """Latent tokens with positions, as queries and as a memory of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.positions = (nn.Parameter(torch.randn(3, 8)) for _ in range(2))
        self.q, self.k, self.v, self.mk, self.mv = (nn.Linear(8, 8) for _ in range(5))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Any:
        latents = self.latents + self.positions
        memory = (x @ self.mk(latents).T).softmax(-1) @ self.mv(latents)
        read = (self.q(latents) @ self.k(x).T).softmax(-1) @ self.v(x + memory)
        return self.norm(read + latents)


def test_layers_that_latent_tokens_pass_are_sites() -> None:
    checked = check(Latents(), X)
    assert set(checked.sites) == {f"{name}.weight" for name in ("q", "k", "v", "mk", "mv")}
    assert set(checked.skipped) == {"latents", "positions"}


def test_towers_over_rows_of_raw_tables_are_sites() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = (nn.Parameter(torch.randn(9, 8)) for _ in range(2))
            self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, users: Tensor, items: Tensor) -> Any:
            return self.left(self.users[users]) @ self.right(self.items[items]).T

    checked = check(Towers(), (torch.tensor([1, 2]), torch.tensor([3, 4, 5])))
    assert set(checked.sites) == {"left.weight", "right.weight"}
    assert set(checked.skipped) == {"users", "items"}


# --- a module that reads the values of another one's weight ---


class Regular(nn.Module):
    """Gives the norm of a weight beside its output; keeps its own forward for a branch on data."""

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.fc, self.branches = nn.Linear(8, 5), branches

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        if self.branches and y.sum() > 1e9:
            y = -y
        return y, self.fc.weight.square().sum()


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_who_computes_with_a_weight_gets_the_effective_one(branches: bool, verify: bool) -> None:
    checked = check(Regular(branches=branches), X, verify=verify)
    (site,) = checked.plan.sites
    assert site.holders == ("",)


# --- adapters ---


class Adapter(nn.Module):
    """A frozen layer and its factors, as most libraries write them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 5).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(8, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.base(x) + self.lora_B(self.lora_A(x))


class Marked(nn.Module):
    """Says which of its attributes are an adapter's, as PEFT's layers do."""

    adapter_layer_names = ("factors",)

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 5)
        self.factors = nn.ModuleDict({"default": nn.Linear(8, 5, bias=False)})

    def forward(self, x: Tensor) -> Any:
        return self.base(x) + self.factors["default"](x)


@pytest.mark.parametrize(
    ("include", "chosen"),
    [
        (None, ["base"]),
        ("*", ["base"]),
        (nn.Linear, ["base"]),
        (["*", "lora_A.*"], ["base", "lora_A"]),
        ("lora_?.weight", ["lora_A", "lora_B"]),
        (lambda site: "lora_B" in site.name, ["lora_B"]),
    ],
)
def test_an_adapter_is_sparse_only_where_it_is_named(include: Any, chosen: list[str]) -> None:
    plan = st3fx.convert(Adapter(), X, include=include)[1].plan
    assert [site.name for site in plan.sites] == [f"{name}.weight" for name in chosen]
    if include is None:
        assert {item.name for item in plan.skipped} == {"lora_A.weight", "lora_B.weight"}
        assert {item.reason.partition(":")[0] for item in plan.skipped} == {
            "an adapter's own factor"
        }


def test_a_module_of_the_model_names_its_adapter() -> None:
    model = Adapter()
    plan = st3fx.convert(model, X, include=[model.base, model.lora_A])[1].plan
    assert [site.name for site in plan.sites] == ["base.weight", "lora_A.weight"]


def test_a_library_says_what_its_adapters_are() -> None:
    checked = check(Marked(), X)
    assert checked.sites == ["base.weight"]
    assert list(checked.skipped) == ["factors.default.weight"]


def test_factors_that_are_merged_into_the_weight_stand_for_no_adapter() -> None:
    class Lora(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 5)
            self.lora_a = nn.Parameter(torch.randn(2, 8))
            self.lora_b = nn.Parameter(torch.randn(5, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight + self.lora_b @ self.lora_a, self.bias)

    model = nn.Sequential(Lora())
    converted, sparsifier = st3fx.convert(model, X)
    assert [site.name for site in sparsifier.plan.sites] == ["0.weight"]
    require_same(model(X), converted(X), "output")
