"""Rules of operators that work element by element."""

from __future__ import annotations

from typing import Any

import torch

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.fact import Fact, Slices, join

UNARY = frozenset(
    ("abs", "ceil", "celu", "clamp", "clamp_max", "clamp_min", "cos", "dropout", "elu", "erf",
     "exp", "expm1", "floor", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh",
     "leaky_relu", "log", "log1p", "log2", "log_sigmoid", "logical_not", "mish", "neg",
     "reciprocal", "relu", "relu6", "round", "rsqrt", "selu", "sigmoid", "sign", "silu", "sin",
     "softplus", "softshrink", "sqrt", "square", "tan", "tanh", "tanhshrink", "threshold",
     "trunc")
)  # fmt: skip
"""Of one tensor; other arguments are numbers."""

COPIES = frozenset(("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "_to_copy"))
"""That change no more than type and layout."""

BINARY = frozenset(
    ("add", "atan2", "div", "maximum", "minimum", "mul", "pow", "sub", "true_divide")
)


def unary(call: Call) -> Fact:
    """A constant becomes the operator's value of it."""
    x, constant = call.x, call.x.constant
    if constant is not None:
        values = call.run({call.operand: constant.values})
        constant = Slices(constant.axis, values, constant.known)
    return call.result(x.axes, constant)


def copy(call: Call) -> Fact:
    """The same values, perhaps of another type."""
    x, constant = call.x, call.x.constant
    if constant is not None:
        values = constant.values.to(call.node.meta["val"].dtype)
        constant = Slices(constant.axis, values, constant.known)
    return call.result(x.axes, constant)


def binary(call: Call) -> Fact:
    """Channels of both operands are one; two constants give one, a product with zero too."""
    operands = [call.optional(name) for name in ("self", "other")]
    facts = [fact for fact in operands if fact is not None]
    shape = call.shape
    axes = join(call.coupling, facts, shape)
    axis = _axis(facts, len(shape))
    if axis is None or not isinstance(shape[axis], int):
        return call.result(axes)
    sides = [
        _side(fact, call[name], axis, len(shape), shape[axis])
        for fact, name in zip(operands, ("self", "other"), strict=True)
    ]
    return call.result(axes, _combined(call, axis, sides))


def _axis(facts: list[Fact], rank: int) -> int | None:
    """The dimension of the result along which an operand is known to be constant."""
    for fact in facts:
        if fact.constant is not None:
            return fact.constant.axis + rank - fact.rank
    for fact in facts:
        if fact.tensor is not None:
            long = [dim for dim, size in enumerate(fact.shape) if size != 1]
            if len(long) == 1:
                return long[0] + rank - fact.rank
    return None


def _side(fact: Fact | None, number: Any, axis: int, rank: int, size: int) -> Slices:
    if fact is None:
        return Slices(axis, torch.tensor(number).expand(size), torch.ones(size, dtype=torch.bool))
    found = fact.slices(axis, rank, size)
    if found is not None:
        return found
    return Slices(axis, torch.ones(size), torch.zeros(size, dtype=torch.bool))


def _combined(call: Call, axis: int, sides: list[Slices]) -> Slices | None:
    left, right = sides
    values = call.run({"self": left.values, "other": right.values}).to(call.node.meta["val"].dtype)
    known = left.known & right.known
    if call.name == "mul":
        zero = (left.known & (left.values == 0)) | (right.known & (right.values == 0))
        values, known = torch.where(zero, 0, values), known | zero
    return Slices(axis, values, known) if bool(known.any()) else None


def prelu(call: Call) -> Fact:
    """A slope for all channels, or one for each."""
    x, weight = call.fact("self"), call.fact("weight")
    axes = list(x.axes)
    if weight.shape != (1,):
        axes[1] = call.coupling.tie(axes[1], weight.axes[0])
    constant = x.constant
    if constant is not None and constant.axis == 1 and weight.tensor is not None:
        values = call.run({"self": constant.values[None], "weight": weight.tensor})[0]
        return call.result(tuple(axes), Slices(1, values, constant.known))
    return call.result(tuple(axes))


def batch_norm(call: Call) -> tuple[Fact, ...]:
    """``γ (x − μ) / √(σ² + ε) + β``; with γ = 0 the channel is β, whatever it was."""
    x = call.fact("input")
    parameters = {
        name: fact
        for name in ("weight", "bias", "running_mean", "running_var")
        if (fact := call.optional(name)) is not None
    }
    axes = list(x.axes)
    for fact in parameters.values():
        axes[1] = call.coupling.tie(axes[1], fact.axes[0])
    shape = call.node.meta["val"][0].shape
    constant = None
    tensors = {name: fact.tensor for name, fact in parameters.items() if fact.tensor is not None}
    if len(tensors) == len(parameters) and isinstance(x.shape[1], int):
        constant = _normalised(call, x, tensors)
    out = Fact(x.shape, tuple(axes), constant)
    assert len(shape) == out.rank
    return (out,)


def _normalised(call: Call, x: Fact, tensors: dict[str, torch.Tensor]) -> Slices | None:
    size = int(x.shape[1])
    given = x.slices(1, x.rank, size)
    dtype = call.node.meta["val"][0].dtype
    if given is None:
        given = Slices(1, torch.ones(size, dtype=dtype), torch.zeros(size, dtype=torch.bool))
    values = call.run({"input": given.values[None], **tensors})[0][0]
    known = given.known
    if "weight" in tensors:
        flat = tensors["weight"] == 0
        values = torch.where(flat, tensors.get("bias", torch.zeros(())), values)
        known = known | flat
    return Slices(1, values, known) if bool(known.any()) else None
