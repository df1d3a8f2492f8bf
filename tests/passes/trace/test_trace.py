"""What is captured, and that it is captured rightly: calls, outputs, shapes, attributes."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.parity import check

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclasses.dataclass
class Result:
    logits: Tensor
    features: Tensor


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)


OUTPUTS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, [b]],
    "dict": lambda a, b: {"a": a, "b": {"c": b}},
    "OrderedDict": lambda a, b: collections.OrderedDict(z=a, y=b),
    "OrderedDict inside": lambda a, b: {"out": collections.OrderedDict(z=a, y=b)},
    "namedtuple": Pair,
    "dataclass": Result,
    "with numbers": lambda a, b: {"a": a, "n": 3, "none": None, "name": "x", "b": b},
    "the same twice": lambda a, b: (a, b, a),
}


class Returns(Two):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return self.make(self.out(y), y)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("make", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_of_every_kind(make: Any, verify: bool) -> None:
    checked = check(Returns(make), X, verify=verify)
    assert checked.sites == ["fc.weight", "out.weight"]
    output = checked.model(X)
    assert type(output) is type(Returns(make)(X))
    if isinstance(output, dict):
        assert list(output) == list(Returns(make)(X))


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "OrderedDict", "namedtuple"])
def test_common_outputs_are_one_graph(kind: str) -> None:
    assert list(check(Returns(OUTPUTS[kind]), X).islands) == [""]


class Takes(Two):
    def forward(
        self,
        x: Tensor,
        features: bool = False,
        *,
        mask: Tensor | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Any:
        y = self.fc(x)
        if mask is not None:
            y = y * mask
        if extra is not None:
            y = y + extra["shift"] * extra["factor"]
        return y if features else self.out(y)


MASK = (torch.arange(6) % 2).float()
CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": ((X,), {}),
    "by name": ((), {"x": X}),
    "a flag": ((X, True), {}),
    "a flag by name": ((X,), {"features": True}),
    "None given": ((X,), {"mask": None}),
    "a mask": ((X,), {"mask": MASK}),
    "nested": ((X,), {"mask": MASK, "extra": {"shift": MASK, "factor": 2.0}}),
    "nested, another number": ((X,), {"mask": MASK, "extra": {"shift": MASK, "factor": 3.0}}),
}


@pytest.mark.parametrize("recorded", ["plain", "by name", "a flag", "a mask", "nested"])
def test_any_call_is_right_whichever_was_recorded(recorded: str) -> None:
    args, kwargs = CALLS[recorded]
    model = Takes()
    checked = check(model, args, example_kwargs=kwargs)
    assert list(checked.islands) == [""]
    model.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    for training in (True, False):
        for name, (others, named) in CALLS.items():
            expected = model.train(training)(*others, **named)
            assert torch.equal(checked.model.train(training)(*others, **named), expected), name


def test_a_dict_of_inputs() -> None:
    checked = check(Takes(), {"x": X, "mask": MASK})
    assert list(checked.islands) == [""]


def test_wrong_calls_raise_what_the_original_raises() -> None:
    checked = check(Takes(), X)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        checked.model()
    with pytest.raises(TypeError, match="unexpected keyword argument 'odd'"):
        checked.model(X, odd=1)


class Shapes(nn.Module):
    """Reshapes by the input's own sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        batch, _, height, width = x.shape
        y = self.conv(x).reshape(batch, 8, height * width)
        return self.fc(y.transpose(1, 2)).view(x.size(0), height, width, 5)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (7, 3, 8, 8), (2, 3, 4, 10), (0, 3, 8, 8)])
def test_other_sizes(shape: tuple[int, ...]) -> None:
    model = Shapes()
    checked = check(model, torch.randn(2, 3, 8, 8))
    model.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    x = torch.randn(shape)
    assert torch.equal(checked.model(x), model(x))


class OnShape(Two):
    """Specialises on a length."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] > 4:
            return self.out(self.fc(x)).sum()
        return self.out(self.fc(x))


def test_a_branch_on_a_shape_is_right_for_both_shapes() -> None:
    model = OnShape()
    checked = check(model, X)
    model.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    for x in (X, torch.randn(9, 6)):
        assert torch.equal(checked.model(x), model(x))


class Parts(Two):
    def features(self, x: Tensor) -> Any:
        return self.fc(x).relu()

    def forward(self, x: Tensor) -> Any:
        return self.out(self.features(x))


def test_a_submodule_called_by_itself_uses_effective_weights() -> None:
    checked = check(Parts(), X)
    weight = checked.sparsifier.effective_weights()["fc.weight"]
    assert (weight == 0).any()
    fc = checked.model.get_submodule("fc")
    assert torch.equal(fc(X), nn.functional.linear(X, weight, fc.get_parameter("bias")))
    features: Any = checked.model.features
    assert torch.equal(features(X), fc(X).relu())


class Unused(Two):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.fc(x))


def test_modules_that_are_not_called_keep_their_keys() -> None:
    checked = check(Unused(), X)
    assert checked.sites == ["fc.weight", "out.weight"]
    assert "spare.weight" in checked.model.state_dict()


def test_the_graph_is_readable_and_runs() -> None:
    checked = check(Parts(), X)
    islands: Any = checked.model.st3fx_islands
    (graph_module,) = islands
    text = graph_module.print_readable(print_output=False)
    assert "fc_weight_effective" in text
    assert "st3fx.soft_threshold" in text
    assert torch.equal(graph_module(X), checked.model(X))
    targets = [n.target for n in graph_module.graph.nodes if n.op == "call_function"]
    assert targets.count(torch.ops.st3fx.soft_threshold.default) == 2
