"""``no_grad`` and ``autocast`` in a forward: regions of its graph, whatever it runs under later."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.parity import check
from tests.passes.trace.test_refusals import Two, X
from tests.passes.trace.test_settled import applies


class NoGrad(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            target = self.fc(x)
        return self.out(x * target)


class OneWeightInAndOut(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            target = self.fc(x)
        return self.out(self.fc(x) * target)


class Decorated(Two):
    @torch.no_grad()
    def teach(self, x: Tensor) -> Any:
        return self.fc(x)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.teach(x) + x)


class EnableGrad(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad():
            return self.out(self.fc(x))


class SetGrad(Two):
    """Gradients by a flag, and a question about them."""

    def forward(self, x: Tensor) -> Any:
        with torch.set_grad_enabled(not self.training):
            y = self.fc(x)
            if torch.is_grad_enabled():
                y = y + 1
        return self.out(x * y)


class Nested(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            y = self.fc(x)
            with torch.enable_grad():
                z = self.fc(x)
        return self.out(y * z)


class OneAfterAnother(Two):
    """Regions that follow each other read a weight each for itself."""

    def forward(self, x: Tensor) -> Any:
        y = x
        for _ in range(6):
            with torch.no_grad():
                target = self.fc(x)
            with torch.enable_grad():
                y = y + self.fc(x) * target
        return self.out(y)


class Autocast(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.fc(x)
            z = x.float() @ y.mT if y.dtype == torch.float32 else y * 2
        return self.out(z.float())


class NoAutocast(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            y = self.fc(x.float())
            if torch.is_autocast_enabled("cpu"):
                y = y + 1
        return self.out(y)


class SameAutocast(Two):
    """The dtype is that of whatever it runs under."""

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu"):
            return self.out(self.fc(x))


class Stored(Two):
    """A context that was made with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.context = torch.autocast("cpu", torch.bfloat16)

    def forward(self, x: Tensor) -> Any:
        with self.context:
            y = self.fc(x)
        return self.out(y.float())


MODELS = [NoGrad, OneWeightInAndOut, OneAfterAnother, Decorated, EnableGrad, SetGrad, Nested,
          Autocast, NoAutocast, SameAutocast, Stored]  # fmt: skip
AMBIENT: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_it_is_one_graph(model: type[nn.Module], verify: bool) -> None:
    assert list(check(model(), X, verify=verify).islands) == [""]


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("model", [NoGrad, Autocast])
def test_so_is_a_model_around_it(model: type[nn.Module], verify: bool) -> None:
    around = nn.Sequential(nn.Linear(6, 6), model(), nn.Linear(4, 3))
    assert list(check(around, X, verify=verify).islands) == [""]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_it_is_right_under_other_contexts(model: type[nn.Module], training: bool) -> None:
    original = model().train(training)
    converted, _ = st3fx.convert(original, X)
    for name, ambient in AMBIENT.items():
        with ambient():
            expected, actual = original(X), converted(X)
        assert torch.equal(actual, expected), name
        assert actual.dtype == expected.dtype, name
        assert actual.requires_grad == expected.requires_grad, name


@pytest.mark.parametrize("ambient", ["bfloat16", "float16"])
def test_the_graph_serves_calls_under_autocast_too(ambient: str) -> None:
    converted, _ = st3fx.convert(NoAutocast(), X)
    with AMBIENT[ambient]():
        assert applies(converted, X)


@pytest.mark.parametrize("model", [NoGrad, SameAutocast])
def test_an_operator_that_fails_leaves_no_region_open(model: type[nn.Module]) -> None:
    converted, _ = st3fx.convert(model(), X)
    assert applies(converted, X[:, :5])
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        converted(X[:, :5])
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() == 1
    torch.autocast_decrement_nesting()


@pytest.mark.parametrize("model", MODELS)
def test_a_pickled_model_keeps_its_regions(model: type[nn.Module]) -> None:
    converted, _ = st3fx.convert(model(), X)
    again = pickle.loads(pickle.dumps(converted))
    assert applies(again, X)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(again(X), converted(X))


@pytest.mark.parametrize("model", MODELS)
def test_a_compiler_gets_the_same(model: type[nn.Module]) -> None:
    converted, _ = st3fx.convert(model(), X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo's own, about contexts
        compiled = torch.compile(converted, backend="eager", fullgraph=True)
        assert torch.equal(compiled(X), converted(X))
    torch._dynamo.reset()


class SwallowsErrors(Two):
    """Something fails inside of a region, and the forward goes on."""

    def forward(self, x: Tensor) -> Any:
        with contextlib.suppress(ZeroDivisionError), torch.no_grad():
            x = self.fc(x)
            _ = 1 / 0
        return self.out(x)


class Crossed(Two):
    """Leaves the outer region first."""

    def forward(self, x: Tensor) -> Any:
        outer, inner = torch.no_grad(), torch.autocast("cpu", torch.bfloat16)
        outer.__enter__()
        inner.__enter__()
        y = self.fc(x)
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        return self.out(y.float())


class Switches(Two):
    """Switches gradients off and on without a region."""

    def forward(self, x: Tensor) -> Any:
        torch.set_grad_enabled(False)
        y = self.fc(x)
        torch.set_grad_enabled(True)
        return self.out(y)


def test_an_error_that_is_caught_closes_its_region() -> None:
    assert list(check(SwallowsErrors(), X).islands) == [""]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Crossed, "has not entered last"),
        (Switches, "runs with gradients switched in a torch.autograd.Function, or"),
    ],
)
def test_what_is_no_region_is_refused(model: type[nn.Module], reason: str) -> None:
    checked = check(model(), X, in_eval=False)
    assert reason in checked.opaque[""]
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
