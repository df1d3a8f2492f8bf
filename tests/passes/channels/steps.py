"""Operators to draw: products, and what they all share.

Each step gives a function of one tensor, perhaps with weights, or ``None`` where a shape does not
allow it. Sizes that depend on the batch are 0 in the shapes that they are given.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Step = Callable[[random.Random, Shape], "nn.Module | None"]


class Named(nn.Module):
    """A function with what it needs, and a name to tell it by."""

    def __init__(self, name: str, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.name, self.function = name, function
        for key, part in parts.items():
            setattr(self, key, part)

    def forward(self, *tensors: Tensor) -> Any:
        parts = (*self._modules.values(), *self._parameters.values(), *self._buffers.values())
        return self.function(*tensors, *parts)

    def extra_repr(self) -> str:
        return self.name


def own_axis(draw: random.Random, shape: Shape) -> int:
    """An axis with a size of its own; negative where there is none."""
    axes = [dim for dim, size in enumerate(shape) if size]
    return draw.choice(axes) if axes else -1


def _weight(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(sizes))


def linear(draw: random.Random, shape: Shape) -> nn.Module | None:
    if not shape[-1]:
        return None
    return nn.Linear(shape[-1], draw.choice((1, 4, 6, 8, 12)), bias=draw.random() < 0.7)


def matmul(draw: random.Random, shape: Shape) -> nn.Module | None:
    if not shape[-1]:
        return None
    weight = _weight(shape[-1], draw.choice((1, 4, 6, 9)))
    return Named("@ weight", lambda x, w: x @ w, w=weight)


def on_the_left(draw: random.Random, shape: Shape) -> nn.Module | None:
    if len(shape) < 2 or not shape[-2]:
        return None
    weight = _weight(draw.choice((4, 6)), shape[-2])
    return Named("weight @", lambda x, w: w @ x, w=weight)


def einsum(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = own_axis(draw, shape)
    if axis < 0:
        return None
    letters = "abcdefg"[: len(shape)]
    left = letters.replace(letters[axis], "z")
    weight = _weight(shape[axis], draw.choice((4, 6)))
    rule = f"{letters},{letters[axis]}z->{left}"
    return Named(f"einsum {rule}", lambda x, w: torch.einsum(rule, x, w), w=weight)


def conv(draw: random.Random, shape: Shape) -> nn.Module | None:
    """Of as many dimensions as there are; the image is whatever stands behind the channels."""
    one_sample = draw.random() < 0.1
    width, rank = shape[0 if one_sample else 1], len(shape) - (1 if one_sample else 2)
    if rank not in (1, 2, 3) or not width:
        return None
    kernel = draw.choice((1, 2, 3))
    groups = draw.choice((1, 1, 1, width, 2))
    groups = groups if width % groups == 0 else 1
    out = draw.choice((1, 4, 6, 8))
    kind = getattr(nn, f"Conv{rank}d")
    if draw.random() < 0.25:
        return getattr(nn, f"ConvTranspose{rank}d")(  # type: ignore[no-any-return]
            width, out, kernel, stride=draw.choice((1, 2)), padding=draw.choice((0, kernel - 1))
        )
    return kind(  # type: ignore[no-any-return]
        width, -(-out // groups) * groups, kernel, stride=draw.choice((1, 1, 2)),
        padding=draw.choice((0, kernel // 2)), groups=groups, bias=draw.random() < 0.7,
        padding_mode=draw.choice(("zeros", "zeros", "reflect")) if rank < 3 else "zeros",
    )  # fmt: skip


PRODUCTS: tuple[Step, ...] = (linear, linear, conv, conv, conv, matmul, einsum, on_the_left)
