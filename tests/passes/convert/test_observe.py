"""What a forward multiplies with, and how its modules are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import InputError
from st3fx.modules.state import rng_states
from st3fx.passes.convert.observation import Observation
from st3fx.passes.convert.observe import observe as _observe
from st3fx.plan.example import Example
from st3fx.plan.sites import Layout
from tests.nets import Mixed, Net, image, sequence
from tests.parity import require_same, snapshot


def observe(model: nn.Module, *examples: Example) -> Observation:
    return _observe(model, examples, {n: p.detach().clone() for n, p in model.named_parameters()})


def test_multiplications_in_order_with_the_module_that_issues_them() -> None:
    found = observe(Net(), Example.of(image()))
    uses = [(use.parameter, use.op, use.module) for use in found.multiplications]
    assert uses == [
        ("stem.weight", "conv2d", "stem"),
        ("block.conv1.weight", "conv2d", "block.conv1"),
        ("block.conv2.weight", "conv2d", "block.conv2"),
        ("fc.weight", "linear", "fc"),
        ("fc.weight", "linear", "again"),
        ("head.weight", "linear", "head"),
    ]
    assert {use.layout for use in found.multiplications} == {Layout((0,))}
    assert not any(use.computed for use in found.multiplications)
    assert list(found.multiplied()) == list(dict.fromkeys(name for name, _, _ in uses))


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_with_one_output_is_a_linear_layer(size: int, bias: bool) -> None:
    found = observe(nn.Linear(size, 1, bias=bias), Example.of(torch.randn(3, size)))
    (use,) = found.multiplied()["weight"]
    assert (use.op, use.layout) == ("linear", Layout((0,)))


def test_biases_and_norms_are_no_multiplications() -> None:
    names = observe(Net(), Example.of(image())).multiplied()
    assert not any("bias" in name or "norm" in name for name in names)


def test_weights_that_a_parent_reads_belong_to_the_parent() -> None:
    found = observe(Mixed(), Example.of(sequence()))
    modules = {use.parameter: use.module for use in found.multiplications}
    assert modules["raw"] == ""
    assert modules["attention.in_proj_weight"] == "attention"
    assert modules["attention.out_proj.weight"] == "attention"
    assert modules["mlp.0.weight"] == "mlp.0"


def test_each_way_of_calling_is_noted_once() -> None:
    found = observe(Net(), Example.of(image()))
    assert [seen.training for seen in found.calls[""]] == [True, False]
    assert [seen.training for seen in found.calls["block.conv1"]] == [True, False]


def test_other_uses_of_a_parameter() -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 6)

        def forward(self, tokens: Tensor) -> Any:
            return self.embedding(tokens) @ self.embedding.weight.T

    found = observe(Embeds(), Example.of(torch.tensor([[1, 2]])))
    assert list(found.multiplied()) == ["embedding.weight"]
    assert found.other_uses["embedding.weight"]


def test_a_computed_weight_is_told_apart() -> None:
    class Scales(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight * 2, self.bias)

    (use,) = observe(Scales(6, 4), Example.of(torch.randn(2, 6))).multiplications
    assert use.computed
    (use,) = observe(nn.Linear(6, 4), Example.of(torch.randn(2, 6))).multiplications
    assert not use.computed


@pytest.mark.parametrize(("model", "x"), [(Net(), image()), (Mixed(), sequence())])
def test_the_model_is_left_as_it_was(model: nn.Module, x: Tensor) -> None:
    model.eval()
    next(model.children()).train()
    before, generators, call = snapshot(model), rng_states(), nn.Module.__call__
    observe(model, Example.of(x))
    require_same(before, snapshot(model), "model")
    assert rng_states() == generators
    assert nn.Module.__call__ is call
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Linear(6, 4), torch.randn(2, 5), "Linear refuses the example inputs in train mode"),
        (nn.Linear(6, 4), (torch.randn(2, 6), 3), "TypeError"),
        (nn.Linear(6, 4), {"y": torch.randn(2, 6)}, "unexpected keyword argument 'y'"),
        (
            nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)),
            torch.randn(1, 6),
            "batch norm needs a larger batch",
        ),
    ],
)
def test_refused_inputs(model: nn.Module, inputs: Any, message: str) -> None:
    call = nn.Module.__call__
    with pytest.raises(InputError) as caught:
        observe(model, Example.of(inputs))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert nn.Module.__call__ is call


class TrainingOnly(nn.Module):
    """Takes targets in training, and no inputs like them in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        if not self.training and target is not None:
            raise ValueError("no targets in eval mode")
        return self.fc(x)


def test_inputs_of_training_are_enough() -> None:
    found = observe(TrainingOnly(), Example.of((torch.randn(2, 6), torch.randn(2))))
    assert list(found.multiplied()) == ["fc.weight"]


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, self.a, self.b, (x,))


def test_an_operator_that_takes_functions_is_named() -> None:
    with pytest.raises(InputError, match="Conditional calls torch's operator cond, whose"):
        st3fx.convert(Conditional(), torch.randn(2, 4))
