"""Rules of operators that work element by element."""

from __future__ import annotations

import torch
from torch import fx

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.fact import Fact, Slices
from st3fx.passes.channels.operand import Operand, join

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


def unary(call: Call) -> Fact | None:
    """A constant becomes the operator's value of it."""
    x, constant = call.x, call.x.constant
    others = [call.get(name) for name in call.parameters if name != call.first]
    if any(isinstance(other, fx.Node) for other in others):
        return None  # bounds that are tensors or sizes
    if constant is not None:
        values = call.run({call.first: constant.values})
        constant = Slices(constant.axis, values, constant.known)
    return call.result(x.all_carried(), constant)


def copy(call: Call) -> Fact:
    """The same values, perhaps of another type."""
    x, constant = call.x, call.x.constant
    if constant is not None:
        constant = Slices(constant.axis, constant.values.to(call.dtype), constant.known)
    return call.result(x.all_carried(), constant)


def binary(call: Call) -> Fact:
    """Channels of both operands are one; two constants give one, a product with zero too."""
    operands = {
        name: operand
        for name in ("self", "other", "exponent")
        if (operand := call.optional(name)) is not None
    }
    shape = call.shape
    axes = join(call.coupling, list(operands.values()), shape)
    axis = _axis(list(operands.values()), len(shape))
    rest = [call.get(name) for name in call.parameters if name not in operands]
    if (
        axis is None
        or not isinstance(shape[axis], int)
        or any(isinstance(number, fx.Node) for number in rest)  # a size that is free
    ):
        return call.result(axes)
    sides = {}
    for name, operand in operands.items():
        found = operand.slices(axis, len(shape), shape[axis])
        sides[name] = found or Slices.unknown(axis, shape[axis], call.dtype)
    return call.result(axes, _combined(call, axis, sides))


def _axis(operands: list[Operand], rank: int) -> int | None:
    """The dimension of the result along which an operand is known to be constant."""
    for operand in operands:
        if operand.constant is not None:
            return operand.constant.axis + rank - operand.rank
    for operand in operands:
        if operand.tensor is not None:
            long = [dim for dim, size in enumerate(operand.shape) if size != 1]
            if len(long) == 1:
                return long[0] + rank - operand.rank
    return None


def _combined(call: Call, axis: int, sides: dict[str, Slices]) -> Slices | None:
    values = call.run({name: side.values for name, side in sides.items()}).to(call.dtype)
    known = torch.stack([side.known for side in sides.values()]).all(0)
    if call.name == "mul":
        zeros = [side.known & (side.values == 0) for side in sides.values()]
        if not isinstance(call["other"], fx.Node) and call["other"] == 0:
            zeros.append(torch.ones_like(known))
        zero = torch.stack(zeros).any(0)
        values, known = torch.where(zero, 0, values), known | zero
    return Slices(axis, values, known) if bool(known.any()) else None


def prelu(call: Call) -> Fact | None:
    """A slope for all channels, or one for each."""
    x, weight = call.operand("self"), call.operand("weight")
    axes = x.all_carried()
    if x.rank < 2 or weight.rank != 1:
        return None
    if weight.shape != (1,):
        axes[1] = call.coupling.tie(axes[1], weight.carried(0))
    constant = x.constant
    if constant is not None and constant.axis == 1 and weight.tensor is not None:
        values = call.run({"self": constant.values[None], "weight": weight.tensor})[0]
        return call.result(axes, Slices(1, values, constant.known))
    return call.result(axes)


def batch_norm(call: Call) -> tuple[Fact, ...]:
    """``γ (x − μ) / √(σ² + ε) + β``; with γ = 0 the channel is β, whatever it was."""
    x = call.operand("input")
    parameters = {
        name: operand
        for name in ("weight", "bias", "running_mean", "running_var")
        if (operand := call.optional(name)) is not None
    }
    axes = x.all_carried()
    for operand in parameters.values():
        axes[1] = call.coupling.tie(axes[1], operand.carried(0))
    constant = None
    tensors = {name: given.tensor for name, given in parameters.items() if given.tensor is not None}
    if len(tensors) == len(parameters) and isinstance(x.shape[1], int):
        constant = _normalised(call, x, tensors)
    return (Fact(x.shape, tuple(axes), constant),)


def _normalised(call: Call, x: Operand, tensors: dict[str, torch.Tensor]) -> Slices | None:
    size = int(x.shape[1])
    given = x.slices(1, x.rank, size)
    dtype = call.node.meta["val"][0].dtype
    if given is None:
        given = Slices.unknown(1, size, dtype)
    values = call.run({"input": given.values[None], **tensors})[0][0]
    known = given.known
    if "weight" in tensors:
        flat = tensors["weight"] == 0
        values = torch.where(flat, tensors.get("bias", torch.zeros(())), values)
        known = known | flat
    return Slices(1, values, known) if bool(known.any()) else None
