"""Fold: exact zeros, no denormals, nothing of ours left; and what cannot be folded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import FoldError, PlanError
from st3fx.passes.convert.fold import clean, undo
from tests.nets import Mixed, Net, image, sequence
from tests.parity import check, require_plain, require_same, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_clean(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    weight = torch.tensor([1.0, -2.0, -0.0, 0.0, tiny, -tiny, tiny / 2, -tiny / 4], dtype=dtype)
    cleaned = clean(weight)
    assert cleaned.tolist() == [1.0, -2.0, 0.0, 0.0, tiny, -tiny, 0.0, 0.0]
    assert not torch.signbit(cleaned[cleaned == 0]).any()


def test_half_precision_keeps_its_denormals() -> None:
    weight = torch.tensor([6e-8, -6e-8, -0.0], dtype=torch.float16)
    cleaned = clean(weight)
    assert (cleaned[:2] != 0).all()
    assert not torch.signbit(cleaned[2])


@pytest.mark.slow
def test_at_sparsity_zero_fold_gives_the_weights_back() -> None:
    original = Net()
    converted, _ = st3fx.convert(original, image())
    folded = st3fx.fold(converted)
    require_same(dict(original.state_dict()), dict(folded.state_dict()), "state dict")


def test_negative_zeros_and_denormals_of_a_dense_weight_are_flushed() -> None:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4)).mul_(-1.0)[0, 1] = 1e-40
    folded = check(model, torch.randn(2, 4), sparsity=0.0, keep_zeros=False).folded
    weight = folded.get_parameter("weight")
    assert (weight == 0).sum() == 12
    assert not torch.signbit(weight[weight == 0]).any()


def test_parameters_stay_parameters_with_their_flags() -> None:
    model = Net()
    model.stem.weight.requires_grad_(False)
    folded = check(model, image()).folded
    assert not folded.get_parameter("stem.weight").requires_grad
    assert folded.get_parameter("head.weight").requires_grad
    assert isinstance(folded.get_parameter("head.weight"), nn.Parameter)


def test_folded_recurrent_modules_run_with_the_static_weights() -> None:
    checked = check(nn.LSTM(6, 4, batch_first=True), sequence())
    checked.model.train()(sequence())
    weights: Any = checked.folded._flat_weights
    assert all(a is b for a, b in zip(weights, checked.folded.parameters(), strict=True))
    effective: Any = checked.model._flat_weights
    names = [name for name, _ in checked.model.named_parameters()]
    static = checked.sparsifier.effective_weights()
    assert all(
        torch.equal(weight, static.get(name, weight))
        for name, weight in zip(names, effective, strict=True)
    )


def test_the_optimizers_parameters_are_kept_when_folding_in_place() -> None:
    converted, sparsifier = st3fx.convert(Net(), image())
    parameters = dict(converted.named_parameters())
    sparsifier.set_sparsity(0.5)
    st3fx.fold(converted, inplace=True)
    assert all(converted.get_parameter(name) is p for name, p in parameters.items())


@pytest.mark.parametrize("model", [Net(), nn.Linear(2, 2)])
def test_what_was_not_converted(model: nn.Module) -> None:
    with pytest.raises(FoldError, match=f"{type(model).__name__} is not a converted model"):
        st3fx.fold(model)


def test_no_module() -> None:
    with pytest.raises(FoldError, match="model is a str: give what convert gave"):
        st3fx.fold("model")  # type: ignore[arg-type]


def test_twice() -> None:
    converted, _ = st3fx.convert(Net(), image())
    folded = st3fx.fold(converted)
    with pytest.raises(FoldError, match="not a converted model"):
        st3fx.fold(folded)


def test_a_folded_model_can_be_converted_again() -> None:
    converted, sparsifier = st3fx.convert(Net(), image())
    sparsifier.set_sparsity(0.5)
    folded = st3fx.fold(converted)
    again = check(folded, image(), sparsity=0.7, keep_zeros=False)
    assert again.sparsifier.sparsity == pytest.approx(0.7, abs=0.01)


def test_a_converted_model_cannot_be_converted_again() -> None:
    converted, _ = st3fx.convert(Net(), image())
    with pytest.raises(PlanError, match="Net is converted already: fold it first"):
        st3fx.convert(converted, image())


def test_undo_gives_the_model_back_as_it_was() -> None:
    original = Mixed()
    converted, sparsifier = st3fx.convert(original, sequence())
    sparsifier.set_sparsity(0.5)
    undo(converted)
    require_plain(converted)
    require_same(dict(original.state_dict()), dict(converted.state_dict()), "state dict")
    require_same(original(sequence()), converted(sequence()), "output")


class Keeps(nn.Module):
    """Keeps what it computed last, as models with attention maps do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        self.last = self.fc(x)
        return self.last.relu()


def test_fold_in_the_middle_of_training_with_kept_activations() -> None:
    x = torch.randn(3, 6)
    converted, sparsifier = st3fx.convert(Keeps(), x)
    sparsifier.set_sparsity(0.5)
    converted.train()(x).sum().backward()
    folded = st3fx.fold(converted)
    require_same(run(converted, (x,), {}, training=False, seed=0),
                 run(folded, (x,), {}, training=False, seed=0), "fold")  # fmt: skip
