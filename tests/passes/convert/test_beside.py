"""Every parameter that an output depends on is a site, or in the plan with a true reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from st3fx.errors import PlanError
from st3fx.passes.convert import discover as discover_pass
from st3fx.passes.convert.observe import observe
from st3fx.plan.example import Example
from tests.parity import check

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
IDS = torch.tensor([[0, 1], [2, 3], [0, 4], [1, 1]])


@torch.library.custom_op("st3fx_tests::product", mutates_args=())
def product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    return grad @ weight.T, x.T @ grad


product.register_autograd(_backward, setup_context=_setup)


def multiplied(x: Tensor, weight: Tensor) -> Tensor:
    """A function, which can be copied."""
    result: Tensor = product(x, weight)
    return result


class Uses(nn.Module):
    """A layer, and a function of its output and raw parameters."""

    def __init__(self, use: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(4)
        self.a = nn.Linear(8, 8)
        self.w = nn.ParameterList([torch.randn(shape, generator=make) / 3 for shape in shapes])
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(self.a(x), *self.w)


def plan(use: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Any:
    """Checked against the oracle."""
    checked = check(Uses(use, *shapes), X, **options)
    return checked.sites[1:], checked.skipped, checked.plan.prunable - checked.plan.sites[0].numel


# --- products that have become sites ---


SITES: dict[str, tuple[Callable[..., Any], tuple[int, ...], str, tuple[int, ...]]] = {
    "addmm_": (lambda x, w: torch.ones(4, 5).addmm_(x, w), (8, 5), "matmul", (1,)),
    "baddbmm_": (
        lambda x, w: torch.ones(4, 1, 5).baddbmm_(x[:, None], w.expand(4, 8, 5)),
        (8, 5), "matmul", (1,),
    ),
    "addbmm_": (
        lambda x, w: torch.ones(2, 5).addbmm_(x.view(2, 2, 8), w), (2, 8, 5), "matmul", (0, 2),
    ),
    "conv_tbc": (
        lambda x, w: torch.conv_tbc(x[:, None], w, torch.zeros(6)), (3, 8, 6), "conv_tbc", (2,),
    ),
    "through .data": (lambda x, w: x @ w.data, (8, 5), "matmul", (1,)),
    "of an expert": (
        lambda x, w: torch.bmm(x[:, None], w[x[:, 0].long() % 3]), (3, 8, 5), "matmul", (),
    ),
    "a sparse input": (
        lambda x, w: torch.sparse.mm(torch.eye(4).to_sparse(), w) + x, (4, 8), "matmul", (1,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SITES.values(), ids=SITES)
def test_a_product_is_a_site(case: Any) -> None:
    use, shape, op, channels = case
    checked = check(Uses(use, shape), X)
    assert checked.skipped == {}
    site = checked.plan.sites[1]
    assert (site.name, site.op, site.layout.channel_dims) == ("w.0", op, channels)


def test_a_deformable_convolution_is_a_site() -> None:
    ops: Any = pytest.importorskip("torchvision.ops")

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Conv2d(4, 18, 3, padding=1)
            self.conv = ops.DeformConv2d(4, 6, 3, padding=1, groups=2)

        def forward(self, x: Tensor) -> Any:
            return self.conv(x, self.offset(x))

    image = torch.randn(2, 4, 7, 7)
    checked = check(Deformed(), image, verify=True)
    offset, conv = checked.plan.sites
    assert (conv.name, conv.op, conv.groups) == ("conv.weight", "deform_conv2d", 2)
    assert (conv.in_channels, conv.layout.channel_dims) == (4, (0,))
    assert conv.cost == offset.cost == 2 * 7 * 7
    assert checked.skipped == {}


# --- everything else ---


def through_numpy(x: Tensor, w: Tensor) -> Tensor:
    return x + torch.from_numpy(np.tanh(w.detach().numpy()))


NUMPY = f"NumPy at test_beside.py:{through_numpy.__code__.co_firstlineno + 1}"


SKIPPED: dict[str, tuple[Callable[..., Any], tuple[int, ...], str, bool]] = {
    "distances": (
        torch.cdist, (5, 8), "read by _cdist_forward: no convolution or matrix product", False,
    ),
    "elementwise": (
        lambda x, w: (x[:, None] * w).sum(-1),
        (5, 8),
        "multiplied elementwise (mul): no matrix product; as a matrix product it could be sparse",
        False,
    ),
    "a scale": (
        lambda x, w: x * w, (1, 8), "multiplied elementwise (mul): no matrix product", False,
    ),
    "a shift": (
        lambda x, w: x + w, (4, 8), "scales or shifts activations one by one (add): no product",
        False,
    ),
    "a norm": (
        lambda x, w: F.layer_norm(x.view(1, 4, 8), (4, 8), w),
        (4, 8), "scales or shifts activations one by one (native_layer_norm): no product", False,
    ),
    "a bag": (
        lambda x, w: F.embedding_bag(IDS, w) + x[:, :5],
        (6, 5), "its rows are looked up (_embedding_bag): no product", False,
    ),
    "a table": (
        lambda x, w: F.embedding(torch.arange(4), w) + x,
        (6, 8), "its rows are looked up (embedding): no product", False,
    ),
    "an operator of others": (
        multiplied,
        (8, 5), "given to st3fx_tests::product, an operator that st3fx does not know", True,
    ),
    "an output": (
        lambda x, w: (x, w.pow(2).sum()),
        (4, 8), "reaches an output without meeting an activation", False,
    ),
    "a number": (
        lambda x, w: x * w.detach().max().item(),
        (4, 8), "reaches an output without meeting an activation", False,
    ),
    "NumPy": (
        through_numpy,
        (4, 8),
        f"reaches an output through {NUMPY}, which st3fx cannot follow: use torch's operators",
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SKIPPED.values(), ids=SKIPPED)
def test_what_is_no_product_says_what_it_is(case: Any) -> None:
    use, shape, reason, prunable = case
    sites, skipped, more = plan(use, shape)
    assert sites == []
    assert skipped == {"w.0": reason}
    assert bool(more) is prunable


def test_memory_that_is_given_away_may_be_written_to() -> None:
    def clipped(x: Tensor, w: Tensor) -> Tensor:
        values = w.detach().numpy()
        np.clip(values, -9, 9, out=values)  # changes nothing, today
        return x @ w

    place = f"test_beside.py:{clipped.__code__.co_firstlineno + 1}"
    assert plan(clipped, (8, 5))[1]["w.0"].startswith(
        f"also read by NumPy at {place} in the forward"
    )


def test_an_unused_parameter_is_not_listed() -> None:
    assert plan(lambda x, w: x, (8, 8)) == ([], {}, 0)


def test_what_is_like_a_weight_reads_nothing_of_it() -> None:
    sites, skipped, _ = plan(lambda x, w: x @ w + torch.ones_like(w)[0], (8, 8))
    assert (sites, skipped) == (["w.0"], {})


def test_parts_that_are_written_into_a_buffer_are_followed() -> None:
    def copied(x: Tensor, w: Tensor) -> Tensor:
        matrix = torch.zeros(8, 8)
        matrix[:4] = w
        return x @ matrix

    assert plan(copied, (4, 8))[1]["w.0"].startswith("computed before it multiplies")


# --- the check itself ---


class Foreign(nn.Module):
    """Reads a weight where no dispatcher sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.hidden = nn.Linear(8, 8), nn.Parameter(torch.randn(2, 2))
        self.memory = self.hidden.data.numpy()

    def forward(self, x: Tensor) -> Any:
        return self.fc(x) * float(self.memory.sum())


def test_what_no_operator_reads_is_found_by_its_effect() -> None:
    model = Foreign()
    source = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = observe(model, (Example.of(X),), source)
    assert found.unseen == {"hidden"}
    skipped = st3fx.convert(model, X, inplace=True)[1].plan.skipped
    assert [(item.name, item.op) for item in skipped] == [("hidden", "none")]
    assert "through a foreign library, which st3fx cannot follow" in skipped[0].reason


def test_a_model_that_is_not_deterministic_is_no_proof() -> None:
    class Noisy(Foreign):
        noise = torch.Generator()

        def forward(self, x: Tensor) -> Any:
            return self.fc(x) + torch.rand((), generator=self.noise)

    model = Noisy()
    source = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert observe(model, (Example.of(X),), source).unseen == set()


def test_a_weight_in_neither_list_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover_pass, "beside", lambda model, observation: [])
    with pytest.raises(PlanError, match=r"w.0 \(5, 8\) reaches an output and is in no list"):
        st3fx.convert(Uses(torch.cdist, (5, 8)), X)


USES: tuple[tuple[Callable[..., Any], tuple[tuple[int, ...], ...]], ...] = (
    (lambda x, w: x @ w, ((8, 8),)),
    (F.linear, ((8, 8),)),
    (lambda x, w: x + w[:4], ((6, 8),)),
    (lambda x, w: x * w, ((1, 8),)),
    (lambda x, w: torch.cdist(x, w)[:, :1] + x, ((8, 8),)),
    (lambda x, w: (x[:, None] * w).sum(-1), ((8, 8),)),
    (lambda x, w: F.embedding(torch.arange(4), w) + x, ((5, 8),)),
    (lambda x, u, v: x @ (u @ v), ((8, 2), (2, 8))),
    (lambda x, w, u, v: F.linear(x, w + u @ v), ((8, 8), (8, 2), (2, 8))),
    (lambda x, q, w: ((q @ w) @ x.T).softmax(0).T @ q, ((3, 8), (8, 8))),
    (multiplied, ((8, 8),)),
    (lambda x, w: torch.zeros(4, 8).addmm_(x, w.tanh()), ((8, 8),)),
    (lambda x, w: x * w.detach().sum().item(), ((2, 2),)),
    (through_numpy, ((4, 8),)),
    (lambda x, w: x, ((8, 8),)),
)


class Chain(nn.Module):
    """Some of these uses, one after the other."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chosen = random.Random(seed).sample(USES, 5)
        torch.manual_seed(seed)
        self.parts = nn.ModuleList(Uses(use, *shapes) for use, shapes in chosen)

    def forward(self, x: Tensor) -> Any:
        for part in self.parts:
            x = torch.tanh(part(x))
        return x


@pytest.mark.parametrize("seed", range(8))
def test_what_is_in_no_list_changes_nothing(seed: int) -> None:
    """The oracle does not look at operators: it changes a parameter, and looks at the output."""
    model = Chain(seed)
    plan = st3fx.convert(model, X, verify=False)[1].plan
    listed = {name for site in plan.sites for name in site.parameters}
    listed |= {item.name for item in plan.skipped if "does not multiply" not in item.reason}
    expected = model(X)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            with torch.no_grad():
                before = parameter.clone()
                parameter.copy_(torch.randn_like(parameter))
                changed = not torch.equal(model(X), expected)
                parameter.copy_(before)
            assert changed == (name in listed), name
