"""``st3fx.convert``: what it takes, what it leaves alone, what it says when it cannot."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import InputError, PlanError, VerificationError
from st3fx.modules.state import rng_states
from tests.nets import MODELS, Mixed, Net, image, sequence
from tests.parity import check, require_same, snapshot

models = pytest.mark.parametrize(("kind", "inputs"), MODELS.values(), ids=MODELS)


@models
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_the_given_model_is_left_alone(
    kind: type[nn.Module], inputs: Any, training: bool, verify: bool
) -> None:
    model = kind().train(training)
    model(inputs()).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    before, generators, x = snapshot(model), rng_states(), inputs()
    converted, _ = st3fx.convert(model, x, verify=verify)
    require_same(before, snapshot(model), "the given model")
    assert rng_states() == generators
    assert torch.equal(x, inputs())
    assert x.grad is None
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())
    assert converted is not model
    assert not {id(p) for p in converted.parameters()} & {id(p) for p in model.parameters()}
    assert converted.training is training


def test_in_place_it_is_the_same_object() -> None:
    model = Net()
    parameters = dict(model.named_parameters())
    converted, sparsifier = st3fx.convert(model, image(), inplace=True)
    assert converted is model is sparsifier.model
    assert all(model.get_parameter(name) is p for name, p in parameters.items())


@pytest.mark.parametrize(
    ("inputs", "kwargs"),
    [
        (image(), None),
        ((image(),), None),
        ({"x": image()}, None),
        ((), {"x": image()}),
    ],
)
def test_every_way_to_give_inputs(inputs: Any, kwargs: Any) -> None:
    checked = check(Net(), inputs, example_kwargs=kwargs)
    assert list(checked.islands) == [""]


def test_inputs_that_require_gradients_get_them() -> None:
    model = Net()
    converted, _ = st3fx.convert(model, image().requires_grad_())
    gradients = []
    for module in (model.eval(), converted.eval()):
        x = image().requires_grad_()
        module(x).square().sum().backward()
        gradients.append(x.grad)
    require_same(gradients[0], gradients[1], "gradient of the input")


class OwnLoss(nn.Module):
    """Takes targets in training and returns losses, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        y = self.fc(x)
        if self.training:
            if targets is None:
                raise ValueError("targets are needed in training")
            return {"loss": sum((y[i] - t["y"]).square().mean() for i, t in enumerate(targets))}
        if targets is not None:
            raise ValueError("no targets in eval mode")
        return [{"y": row} for row in y]


@pytest.mark.parametrize("verify", [False, True])
def test_train_and_eval_calls_may_differ(verify: bool) -> None:
    x = torch.randn(2, 6)
    targets = [{"y": torch.randn(4)} for _ in range(2)]
    model = OwnLoss()
    checked = check(model, (x, targets), in_eval=False, verify=verify)
    model.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    expected = model.eval()(x)
    require_same(expected, checked.model.eval()(x), "eval")
    require_same(expected, checked.folded.eval()(x), "folded")


@pytest.mark.parametrize(
    ("model", "inputs", "options", "error", "message"),
    [
        ("net", image(), {}, InputError, "model is a str: give an nn.Module"),
        (Net(), 3, {}, InputError, "example_inputs is a int"),
        (Net(), torch.randn(2, 5, 8, 8), {}, InputError, "Net refuses the example inputs"),
        (Net(), image(), {"total_steps": 0}, PlanError, "total_steps=0: give the number"),
        (nn.ReLU(), image(), {}, PlanError, "no parameter that feeds a convolution"),
        (nn.LazyLinear(3), torch.randn(2, 3), {}, InputError, "lazy parameters"),
        (nn.DataParallel(Net()), image(), {}, InputError, "wraps a model"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_mistakes(model: Any, inputs: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        st3fx.convert(model, inputs, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, st3fx.St3fxError)


def test_progress_names_the_stages() -> None:
    stages: list[str] = []
    st3fx.convert(Net(), image(), progress=stages.append)
    assert stages == ["observe", "discover", "trace", "rewrite", "verify"]
    stages.clear()
    st3fx.convert(Net(), image(), verify=False, progress=stages.append)
    assert stages == ["observe", "discover", "trace", "rewrite"]


def test_the_plan_adds_up() -> None:
    model = Mixed()
    plan = check(model, sequence()).plan
    total = sum(parameter.numel() for parameter in model.parameters())
    assert plan.total_parameters == total
    assert plan.numel == total - sum(p.numel() for p in model.parameters() if p.dim() < 2)
    assert plan.skipped == ()
    assert (plan.method, plan.target) == ("st3", 0.9)


def test_another_batch_of_the_first_conversion_is_free() -> None:
    """Converting with one sample serves every batch."""
    model = Mixed()
    checked = check(model, sequence(1))
    model.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    for batch in (1, 2, 9):
        assert torch.equal(checked.model(sequence(batch)), model(sequence(batch)))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.9, 0.999])
@models
def test_any_sparsity(kind: type[nn.Module], inputs: Any, sparsity: float) -> None:
    checked = check(kind(), inputs(), sparsity=sparsity)
    assert checked.sparsifier.sparsity == pytest.approx(sparsity, abs=1e-2)


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_collection_stays_as_the_user_has_it(collects: bool) -> None:
    seen = set()

    class Looks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(gc.isenabled())
            return super().forward(x)

    (gc.enable if collects else gc.disable)()
    try:
        st3fx.convert(nn.Sequential(Looks(6, 6), nn.ReLU()), torch.randn(3, 6))
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    # On in verification alone, which runs whole steps; off while graphs are made.
    assert seen == ({True, False} if collects else {False})


# --- inference mode ---


def made_in_inference_mode() -> Any:
    with torch.inference_mode():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))


@pytest.mark.parametrize("verify", [True, False])
def test_inference_mode_around_it_makes_no_difference(verify: bool) -> None:
    model, x = Net(), image()
    expected = st3fx.convert(model, x, verify=verify)[1].plan
    with torch.inference_mode():
        converted, sparsifier = st3fx.convert(model, image(), verify=verify)
        sparsifier.set_sparsity(0.5)
        folded = st3fx.fold(converted)
        assert torch.is_inference_mode_enabled()
    assert sparsifier.plan == expected
    for module in (converted, folded):
        assert not any(p.is_inference() for p in (*module.parameters(), *module.buffers()))
        module(x).sum().backward()


def test_a_model_and_inputs_that_were_made_in_inference_mode() -> None:
    model = made_in_inference_mode()
    with torch.inference_mode():
        x = image()
    converted, sparsifier = st3fx.convert(model, x)
    assert len(sparsifier.plan.sites) == 2
    assert not any(p.is_inference() for p in (*converted.parameters(), *converted.buffers()))
    converted(image()).sum().backward()
    with pytest.raises(InputError, match=r"0.weight was made in torch.inference_mode"):
        st3fx.convert(model, image(), inplace=True)


def test_gradients_stay_off_where_they_are_off() -> None:
    with torch.no_grad():
        st3fx.convert(Net(), image(), verify=False)
        assert not torch.is_grad_enabled()


# --- weights that are empty, and models that fail by themselves ---


def test_an_empty_weight_is_no_site() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.none = nn.Linear(8, 4), nn.Parameter(torch.zeros(8, 0))

        def forward(self, x: Tensor) -> Any:
            return torch.cat([self.fc(x), x @ self.none], 1)

    checked = check(Empty(), torch.randn(3, 8), verify=True)
    assert checked.sites == ["fc.weight"]
    assert checked.skipped == {"none": "it is empty"}


def test_a_model_that_cannot_train_says_so_itself() -> None:
    class Frozen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("no gradient")

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            return Frozen.apply(self.fc(x))

    with pytest.raises(
        VerificationError, match=r"Broken itself fails in a training step .*verify=F"
    ):
        st3fx.convert(Broken(), torch.randn(3, 8))
    assert len(st3fx.convert(Broken(), torch.randn(3, 8), verify=False)[1].plan.sites) == 1


class Hidden(nn.Module):
    """A weight that an object keeps from the attributes, as a framework's own variables do."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))
        self.kept = (self.w,)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kept[0] if x.sum() < 1e9 else x


def test_a_model_that_ends_without_a_site_is_refused() -> None:
    model = Hidden()
    with pytest.raises(PlanError, match=r"Hidden has no weight to make sparse.* w \(4, 4\): gets"):
        st3fx.convert(model, torch.randn(3, 4), inplace=True)
    assert type(model) is Hidden
    assert set(vars(model)) == set(vars(Hidden()))
