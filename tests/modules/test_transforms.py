"""The operators under torch.func: nested, forward-mode, of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp

import st3fx
from st3fx.methods import DST, GMP, STR, Feather
from st3fx.plan.sites import Layout, Site

# torch says it of its own forward-mode formulas.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

W = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
NO_MASK = torch.empty(0, dtype=torch.bool)
MASK = torch.tensor([1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1], dtype=torch.bool).view(4, 3)
STRAIGHT: dict[str, Any] = {"st3": st3fx.ST3(), "feather": Feather(0.9)}
LEARNED: dict[str, Any] = {"dst": DST(1e-3), "str": STR(), "gmp": GMP(0.9)}


def operator(method: Any, threshold: Tensor, mask: Tensor) -> Any:
    site = Site("w", ("w",), (4, 3), "linear", Layout((0,)), ("",))
    constants = method.constants(site)
    return lambda w: method.op(w, threshold, mask, *constants)


def cube(weight: Tensor) -> Any:
    return (weight**3).sum()


TWICE: dict[str, Any] = {
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "forward over reverse": hessian,
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "gradient of a gradient": lambda f: grad(lambda w: grad(f)(w).square().sum()),
}


@pytest.mark.parametrize("twice", TWICE.values(), ids=TWICE)
@pytest.mark.parametrize("method", STRAIGHT.values(), ids=STRAIGHT)
def test_second_derivatives_are_straight_through(method: Any, twice: Any) -> None:
    effective = operator(method, torch.tensor(0.4), NO_MASK)
    expected = twice(cube)(effective(W))
    assert torch.equal(twice(lambda w: cube(effective(w)))(W), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [NO_MASK, MASK], ids=["free", "frozen"])
@pytest.mark.parametrize("method", (STRAIGHT | LEARNED).values(), ids=STRAIGHT | LEARNED)
def test_a_directional_derivative_is_that_of_the_gradient(method: Any, mask: Tensor) -> None:
    threshold = torch.tensor(0.4)
    if isinstance(method, DST):
        threshold = torch.full((4, 1), 0.3)
    elif isinstance(method, STR):
        threshold = torch.full((1,), -1.0)
    effective = operator(method, threshold, mask)
    for row in range(4):
        direction = torch.zeros_like(W)
        direction[row] = torch.tensor([1.0, -2.0, 0.5])
        gradient = grad(lambda w: cube(effective(w)))(W)
        tangent = jvp(lambda w: cube(effective(w)), (W,), (direction,))[1]
        torch.testing.assert_close(tangent, (gradient * direction).sum())
    with torch.no_grad():
        torch.testing.assert_close(
            tangent, jvp(lambda w: cube(effective(w)), (W,), (direction,))[1]
        )


def test_the_threshold_has_a_direction_too() -> None:
    method, threshold = DST(1e-3), torch.full((4, 1), 0.3)

    def loss(t: Tensor) -> Any:
        return cube(operator(method, t, NO_MASK)(W))

    gradient = grad(loss)(threshold)
    direction = torch.tensor([[1.0], [0.5], [-1.0], [2.0]])
    tangent = jvp(loss, (threshold,), (direction,))[1]
    torch.testing.assert_close(tangent, (gradient * direction).sum())
