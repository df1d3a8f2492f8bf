"""Weights that are computed before they multiply: the threshold stands after the computation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode

import st3fx
from st3fx.errors import ForwardError
from tests.parity import Checked, check, require_plain, require_same, run

IMAGE = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(6))
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))


class StdConv(nn.Conv2d):
    """Weight standardisation, as in timm and BiT."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.var((1, 2, 3), keepdim=True, unbiased=False).add(1e-5).sqrt()
        weight = (self.weight - mean) / std
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(nn.Linear):
    """A weight with a learned gain."""

    def __init__(self) -> None:
        super().__init__(6, 5)
        self.gain = nn.Parameter(torch.rand(5, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


def weight_normed() -> Any:
    return parametrizations.weight_norm(nn.Linear(6, 5))


def spectrally_normed() -> Any:
    return parametrizations.spectral_norm(nn.Linear(6, 5))


def orthogonal() -> Any:
    return parametrizations.orthogonal(nn.Linear(6, 6))


CASES: dict[str, tuple[Any, Tensor, type[nn.Module]]] = {
    "standardised": (lambda: StdConv(4, 6, 3, padding=1, stride=2), IMAGE, nn.Conv2d),
    "standardised, grouped": (lambda: StdConv(4, 6, 3, groups=2, bias=False), IMAGE, nn.Conv2d),
    "scaled": (Scaled, X, nn.Linear),
    "weight norm": (weight_normed, X, nn.Linear),
    "spectral norm": (spectrally_normed, X, nn.Linear),
    "orthogonal": (orthogonal, X, nn.Linear),
}
cases = pytest.mark.parametrize(("make", "x", "plain"), CASES.values(), ids=CASES)


def inside(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU())


def check_computed(model: nn.Module, x: Tensor, verify: bool = False) -> Checked:
    return check(model, x, oracle=False, verify=verify, sparsity=0.5)


@cases
@pytest.mark.parametrize("verify", [False, True])
def test_the_multiplied_weight_is_sparse(make: Any, x: Tensor, plain: Any, verify: bool) -> None:
    checked = check_computed(inside(make()), x, verify)
    (site,) = checked.plan.sites
    assert (site.name, site.computed) == ("0.weight", True)
    weight = checked.sparsifier.effective_weights()["0.weight"]
    assert (weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


@cases
def test_fold_puts_the_plain_layer_in_its_place(make: Any, x: Tensor, plain: Any) -> None:
    checked = check_computed(inside(make()), x)
    folded: Any = checked.folded
    assert type(folded[0]) is plain
    assert not parametrize.is_parametrized(folded[0])
    weight = checked.sparsifier.effective_weights()["0.weight"]
    assert torch.equal(folded[0].weight, weight)
    assert isinstance(folded[0].weight, nn.Parameter)
    keys = ["0.weight", "0.bias"] if folded[0].bias is not None else ["0.weight"]
    assert sorted(folded.state_dict()) == sorted(keys)


@cases
def test_gradients_pass_straight_through_into_the_computation(
    make: Any, x: Tensor, plain: Any
) -> None:
    """The oracle: the same computation, and a gradient of the static weight fed into it."""
    torch.manual_seed(0)
    layer = make().eval()  # a spectral norm would take another step in training
    converted, sparsifier = st3fx.convert(inside(layer), x)
    latent = computed_weight(layer)
    sparsifier.set_sparsity(0.5)
    folded: Any = copy.deepcopy(st3fx.fold(converted)).requires_grad_()
    for module in (converted.eval(), folded.eval()):
        module(x).square().sum().backward()
    latent.backward(folded[0].weight.grad)
    for name, parameter in layer.named_parameters():
        if not name.endswith("bias"):
            actual = converted.get_parameter(f"0.{name}").grad
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-5, atol=1e-6)


def computed_weight(layer: Any) -> Tensor:
    if parametrize.is_parametrized(layer) or not isinstance(layer, StdConv | Scaled):
        weight: Tensor = layer.weight
        return weight
    if isinstance(layer, Scaled):
        return layer.weight * layer.gain
    mean = layer.weight.mean((1, 2, 3), keepdim=True)
    std = layer.weight.var((1, 2, 3), keepdim=True, unbiased=False).add(1e-5).sqrt()
    return (layer.weight - mean) / std


@cases
def test_fold_leaves_original_and_converted_model_working(make: Any, x: Tensor, plain: Any) -> None:
    model = inside(make())
    converted, sparsifier = st3fx.convert(model, x)
    expected = run(model, (x,), {}, training=False, seed=0)
    sparsifier.set_sparsity(0.5)
    st3fx.fold(converted)
    require_same(expected, run(model, (x,), {}, training=False, seed=0), "the original")
    sparsifier.set_sparsity(0.0)
    require_same(expected, run(converted, (x,), {}, training=False, seed=0), "the converted")


def test_a_subclass_with_the_same_keys_loads_into_the_plain_class() -> None:
    checked = check_computed(nn.Sequential(StdConv(4, 6, 3), nn.BatchNorm2d(6)), IMAGE)
    assert list(checked.folded.state_dict()) == list(
        nn.Sequential(StdConv(4, 6, 3), nn.BatchNorm2d(6)).state_dict()
    )
    plain = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    plain.load_state_dict(checked.folded.state_dict(), strict=True)
    require_same(checked.model.eval()(IMAGE), plain.eval()(IMAGE), "plain")


def test_the_model_itself_may_be_such_a_layer() -> None:
    checked = check_computed(StdConv(4, 6, 3), IMAGE)
    assert type(checked.folded) is nn.Conv2d
    assert checked.sites == ["weight"]


def test_one_layer_in_two_places_is_replaced_in_both() -> None:
    layer = StdConv(4, 4, 3, padding=1)
    checked = check_computed(nn.Sequential(layer, nn.ReLU(), layer), IMAGE)
    folded: Any = checked.folded
    assert type(folded[0]) is nn.Conv2d
    assert folded[2] is folded[0]


class Residual(StdConv):
    """Does more than a convolution: no plain layer stands for it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class OtherPadding(nn.Conv2d):
    """Calls its convolution in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2, self.bias, padding=7)


class Branching(StdConv):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() < 1e9 else x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Residual(4, 4, 3, padding=1), "does more than a Conv2d"),
        (OtherPadding(4, 4, 3), "differently from a Conv2d"),
        (Branching(4, 4, 3), "cannot be traced"),
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_what_no_plain_layer_can_do_stays_dense(
    layer: nn.Module, reason: str, verify: bool
) -> None:
    checked = check(nn.Sequential(nn.Conv2d(4, 4, 1), layer), IMAGE, verify=verify)
    assert checked.sites == ["0.weight"]
    assert reason in checked.skipped["1.weight"]


def test_a_computed_weight_called_in_another_way_is_never_dense() -> None:
    class Extra(StdConv):
        def forward(self, x: Tensor, twice: bool = False) -> Tensor:
            y = super().forward(x)
            return y * 2 if twice else y

    converted, sparsifier = st3fx.convert(inside(Extra(4, 4, 3)), IMAGE, verify=False)
    assert len(sparsifier.plan.sites) == 1
    with pytest.raises(ForwardError, match="convert it with this call"):
        converted.get_submodule("0")(IMAGE, twice=True)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm_of_old_is_skipped_with_what_to_do() -> None:
    old: nn.Module = torch.nn.utils.weight_norm(nn.Linear(6, 5))
    model = nn.Sequential(old, nn.ReLU(), nn.Linear(5, 3))
    model(X).sum().backward()
    converted, sparsifier = st3fx.convert(model, X)
    assert [site.name for site in sparsifier.plan.sites] == ["2.weight"]
    reasons = {item.name: item.reason for item in sparsifier.plan.skipped}
    assert set(reasons) == {"0.weight_g", "0.weight_v"}
    assert "use torch.nn.utils.parametrizations" in reasons["0.weight_v"]
    assert torch.equal(converted(X), model(X))


@cases
def test_a_copy_is_computed_from_its_own_parameters(make: Any, x: Tensor, plain: Any) -> None:
    converted, sparsifier = st3fx.convert(inside(make()), x)
    sparsifier.set_sparsity(0.5)
    other = copy.deepcopy(converted)
    before = run(converted, (x,), {}, training=False, seed=0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    require_same(before, run(converted, (x,), {}, training=False, seed=0), "original")
    folded = st3fx.fold(other)
    require_plain(folded)
    require_same(run(other, (x,), {}, training=False, seed=0),
                 run(folded, (x,), {}, training=False, seed=0), "fold of the copy")  # fmt: skip


@cases
def test_hooks_see_the_sparse_layer(make: Any, x: Tensor, plain: Any) -> None:
    """Those of the layer itself, before and after the conversion, and those of all modules."""
    model: Any = inside(make())
    calls: list[str] = []
    model[0].register_forward_hook(lambda *_: calls.append("before"))
    converted: Any = st3fx.convert(model, x)[0]
    st3fx.Sparsifier(converted).set_sparsity(0.5)
    expected = run(converted, (x,), {}, training=False, seed=0)
    converted[0].register_forward_hook(lambda *_: calls.append("after"))
    hook = nn.modules.module.register_module_forward_hook(lambda *_: calls.append("all"))
    calls.clear()
    try:
        require_same(expected, run(converted, (x,), {}, training=False, seed=0), "under hooks")
    finally:
        hook.remove()
    assert {"before", "after", "all"} <= set(calls)
    with FlopCounterMode(display=False) as counter:
        require_same(expected, run(converted, (x,), {}, training=False, seed=0), "counted")
    assert counter.get_total_flops() > 0


def test_a_model_can_be_converted_under_a_global_hook() -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        plan = st3fx.convert(inside(StdConv(4, 6, 3)), IMAGE)[1].plan
    finally:
        hook.remove()
    assert [site.name for site in plan.sites] == ["0.weight"]


def test_a_weight_that_is_computed_in_training_alone_stays_dense() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight * 2 if self.training else self.weight
            return F.linear(x, weight, self.bias)

    for verify in (True, False):
        checked = check(nn.Sequential(nn.Linear(6, 6), Noisy(6, 5)), X, verify=verify)
        assert checked.sites == ["0.weight"]
        assert list(checked.skipped) == ["1.weight"]


def prepared(*layers: nn.Module) -> nn.Module:
    """A model that is about to be trained for integers: with fake quantisation."""
    model = nn.Sequential(*layers).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    done: nn.Module = quantization.prepare_qat(model)
    return done


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*reduce_range", "ignore:torch.quantize_per_tensor"
)
@pytest.mark.parametrize("verify", [True, False])
def test_fake_quantisation_comes_after_the_threshold(verify: bool) -> None:
    model = prepared(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(294, 5))
    for _ in range(2):  # before its observers have seen anything, and afterwards
        converted, sparsifier = st3fx.convert(model, IMAGE, verify=verify)
        conv, linear = sparsifier.plan.sites
        assert (conv.op, conv.layout.channel_dims, conv.computed) == ("conv2d", (0,), False)
        assert (linear.op, linear.layout.channel_dims) == ("linear", (0,))
        sparsifier.set_sparsity(0.5)
        oracle = copy.deepcopy(model)
        oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
        for training in (True, False):
            calls = [run(m, (IMAGE,), {}, training=training, seed=0) for m in (oracle, converted)]
            require_same(calls[0], calls[1], "output")
        folded: Any = st3fx.fold(converted.eval())
        require_same(converted(IMAGE), folded(IMAGE), "fold")
        assert type(folded[0]) is type(model[0])  # type: ignore[index]
        integers: Any = quantization.convert(folded.eval())
        zeros = (integers[0].weight().int_repr() == 0).float().mean()
        assert zeros >= (folded[0].weight == 0).float().mean() > 0.1
        model(IMAGE)
