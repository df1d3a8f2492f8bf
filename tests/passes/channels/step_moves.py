"""Operators to draw: those that move values between axes, cut these up and put them together."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.channels.steps import Named, Shape, Step, own_axis


def permute(draw: random.Random, shape: Shape) -> nn.Module | None:
    order = list(range(len(shape)))
    if draw.random() < 0.8:
        order[1:] = draw.sample(order[1:], len(order) - 1)
    else:
        draw.shuffle(order)
    return Named(f"permute {order}", lambda x: x.permute(order))


def transpose(draw: random.Random, shape: Shape) -> nn.Module | None:
    first, second = draw.sample(range(len(shape)), 2)
    if draw.random() < 0.5:
        return Named(f"transpose {first} {second}", lambda x: x.transpose(first, second))
    return Named(f"swap {first} {second}", lambda x: x.transpose(first, second).contiguous())


def unsqueeze(draw: random.Random, shape: Shape) -> nn.Module | None:
    dim = draw.randrange(1, len(shape) + 1)
    return Named(f"unsqueeze {dim}", lambda x: x.unsqueeze(dim))


def squeeze(draw: random.Random, shape: Shape) -> nn.Module | None:
    dim = draw.randrange(-1, len(shape))
    if dim < 0:
        return Named("squeeze", lambda x: x.squeeze())
    return Named(f"squeeze {dim}", lambda x: x.squeeze(dim))


def flatten(draw: random.Random, shape: Shape) -> nn.Module | None:
    first = draw.randrange(0 if draw.random() < 0.3 else 1, max(2, len(shape) - 1))
    last = draw.randrange(first, len(shape)) if first < len(shape) else first
    return Named(f"flatten {first} {last}", lambda x: x.flatten(first, last))


def unflatten(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = own_axis(draw, shape)
    if axis < 0 or shape[axis] < 2:
        return None
    factor = draw.choice([n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0])
    sizes = (factor, shape[axis] // factor)
    return Named(f"unflatten {axis} {sizes}", lambda x: x.unflatten(axis, sizes))


def regroup(draw: random.Random, shape: Shape) -> nn.Module | None:
    """``view`` of the last dimensions as others, with no regard to where they end."""
    if len(shape) < 3 or not (shape[-1] and shape[-2]):
        return None
    count = shape[-1] * shape[-2]
    width = draw.choice([n for n in range(1, count + 1) if count % n == 0])
    lead = len(shape) - 2
    if draw.random() < 0.5:
        return Named(f"regroup {width}", lambda x: x.reshape(*x.shape[:lead], width, -1))
    return Named(f"regroup ..{width}", lambda x: x.reshape(*x.shape[:lead], -1, width))


def to_batch(draw: random.Random, shape: Shape) -> nn.Module | None:
    """Images of one channel each, as many as there were channels."""
    if len(shape) < 3:
        return None
    return Named("to batch", lambda x: x.reshape(-1, 1, *x.shape[2:]))


def from_batch(draw: random.Random, shape: Shape) -> nn.Module | None:
    """Halves of the batch, side by side."""
    return Named(
        "from batch", lambda x: x.reshape(2, x.shape[0] // 2, *x.shape[1:]).transpose(0, 1)
    )


def shuffle(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = own_axis(draw, shape)
    if axis < 0 or shape[axis] % 2:
        return None
    sizes = (2, shape[axis] // 2)
    return Named(
        f"shuffle {axis}",
        lambda x: x.unflatten(axis, sizes).transpose(axis, axis + 1).flatten(axis, axis + 1),
    )


def pixel_shuffle(draw: random.Random, shape: Shape) -> nn.Module | None:
    if len(shape) < 3:
        return None
    if draw.random() < 0.6:
        return Named("pixel shuffle", lambda x: F.pixel_shuffle(x, 2))
    return Named("pixel unshuffle", lambda x: F.pixel_unshuffle(x, 2))


def cut(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = own_axis(draw, shape)
    if axis < 0 or shape[axis] < 2:
        return None
    size = shape[axis]
    start, step = draw.randrange(size), draw.choice((1, 1, 2))
    end = draw.randrange(start + 1, size + 1)
    index = torch.tensor([draw.randrange(size) for _ in range(draw.randint(1, size))])
    key = (*(slice(None),) * axis, slice(start, end, step))
    return draw.choice((
        Named(f"cut {axis} {start}:{end}:{step}", lambda x: x[key]),
        Named(f"select {axis} {start}", lambda x: x.select(axis, start)),
        Named(f"index {axis}", lambda x, i: x.index_select(axis, i), i=nn.Buffer(index)),
        Named(f"fancy {axis}", lambda x, i: x.movedim(axis, 0)[i].movedim(0, axis),
              i=nn.Buffer(index)),
        Named(f"chunk {axis}", lambda x: x.chunk(2, axis)[0]),
        Named(f"unbind {axis}", lambda x: x.unbind(axis)[start]),
        Named(f"narrow {axis}", lambda x: x.narrow(axis, start, 1)),
    ))  # fmt: skip


def parts(draw: random.Random, shape: Shape) -> nn.Module | None:
    """Cut an axis into parts, and put these together."""
    axis = own_axis(draw, shape)
    if axis < 0 or shape[axis] < 2:
        return None
    count = draw.choice((2, shape[axis]))
    other = draw.randrange(len(shape))
    return draw.choice((
        Named(f"swap parts {axis}", lambda x: torch.cat(x.chunk(count, axis)[::-1], axis)),
        Named(f"parts {axis} to {other}", lambda x: torch.cat(x.chunk(count, axis), other)),
        Named(f"product of parts {axis}", lambda x: _first_two(x, count, axis, torch.mul)),
        Named(f"sum of parts {axis}", lambda x: _first_two(x, count, axis, torch.add)),
        Named(f"one part times all {axis}", lambda x: x * x.chunk(shape[axis], axis)[-1].sigmoid()),
        Named(f"stack {axis} to {other}", lambda x: torch.stack(x.chunk(count, axis), other)),
    ))  # fmt: skip


def _first_two(x: Tensor, count: int, axis: int, join: Callable[..., Tensor]) -> Tensor:
    left, right, *_ = x.chunk(count, axis)
    return join(left, right.tanh())


def expand(draw: random.Random, shape: Shape) -> nn.Module | None:
    ones = [dim for dim, size in enumerate(shape) if size == 1]
    if not ones:
        return None
    sizes = [-1] * len(shape)
    sizes[draw.choice(ones)] = 3
    return Named(f"expand {sizes}", lambda x: x.expand(sizes))


MOVES: tuple[Step, ...] = (
    permute, permute, transpose, unsqueeze, squeeze, flatten, unflatten, regroup, to_batch,
    from_batch, shuffle, pixel_shuffle, cut, parts, expand,
)  # fmt: skip
