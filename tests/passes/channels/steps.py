"""Operators to draw, by what they do with the axes of one tensor.

Each gives a function of one tensor, perhaps with weights, or ``None`` where the shape does not
allow it. Sizes that depend on the batch are 0 in the shapes that they are given.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        named = {**self._modules, **self._parameters, **self._buffers}
        return self.function(*tensors, **named)

    def extra_repr(self) -> str:
        return self.name


def _axis(draw: random.Random, shape: Shape, *, after: int = 0) -> int:
    """An axis with a size of its own; negative where there is none."""
    axes = [dim for dim, size in enumerate(shape) if size and dim >= after]
    return draw.choice(axes) if axes else -1


def _weight(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(sizes))


# Products ----------------------------------------------------------------------------------------


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
    axis = _axis(draw, shape)
    if axis < 0:
        return None
    letters = "abcdefg"[: len(shape)]
    left = letters.replace(letters[axis], "z")
    weight = _weight(shape[axis], draw.choice((4, 6)))
    rule = f"{letters},{letters[axis]}z->{left}"
    return Named(f"einsum {rule}", lambda x, w: torch.einsum(rule, x, w), w=weight)


def conv(draw: random.Random, shape: Shape) -> nn.Module | None:
    """Of as many dimensions as there are; the image is whatever stands behind dimension 1."""
    rank = len(shape) - 2
    if rank not in (1, 2, 3) or not shape[1]:
        return None
    kernel = draw.choice((1, 2, 3))
    groups = draw.choice((1, 1, 1, shape[1], 2))
    groups = groups if shape[1] % groups == 0 else 1
    out = draw.choice((1, 4, 6, 8))
    kind = getattr(nn, f"Conv{rank}d")
    if draw.random() < 0.25:
        return getattr(nn, f"ConvTranspose{rank}d")(  # type: ignore[no-any-return]
            shape[1], out, kernel, stride=draw.choice((1, 2)), padding=draw.choice((0, kernel - 1))
        )
    return kind(  # type: ignore[no-any-return]
        shape[1], -(-out // groups) * groups, kernel, stride=draw.choice((1, 1, 2)),
        padding=draw.choice((0, kernel // 2)), groups=groups, bias=draw.random() < 0.7,
        padding_mode=draw.choice(("zeros", "zeros", "reflect")) if rank < 3 else "zeros",
    )  # fmt: skip


class Recurrent(nn.Module):
    """The outputs of an LSTM or a GRU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


def recurrent(draw: random.Random, shape: Shape) -> nn.Module | None:
    if len(shape) != 3 or not (shape[-1] and shape[1]):
        return None
    kind = draw.choice((nn.LSTM, nn.GRU))
    return Recurrent(kind(shape[-1], 4, batch_first=True, bidirectional=draw.random() < 0.3))


# Moves -------------------------------------------------------------------------------------------


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
    axis = _axis(draw, shape)
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
    return Named(
        "from batch", lambda x: x.reshape(2, x.shape[0] // 2, *x.shape[1:]).transpose(0, 1)
    )


def shuffle(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = _axis(draw, shape)
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
    axis = _axis(draw, shape)
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
    axis = _axis(draw, shape)
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


# Reductions, windows and the like ----------------------------------------------------------------


def reduce(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = _axis(draw, shape)
    if axis < 0 or len(shape) < 3:
        return None
    keep = draw.random() < 0.4
    name = draw.choice(("mean", "sum", "amax", "amin", "logsumexp", "var", "norm", "prod"))
    return Named(f"{name} {axis} {keep}", lambda x: getattr(x, name)(dim=axis, keepdim=keep))


def along(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = _axis(draw, shape)
    if axis < 0:
        return None
    return draw.choice((
        Named(f"cumsum {axis}", lambda x: x.cumsum(axis)),
        Named(f"softmax {axis}", lambda x: x.softmax(axis)),
        Named(f"sort {axis}", lambda x: x.sort(axis)[0]),
        Named(f"topk {axis}", lambda x: x.topk(1, axis)[0]),
        Named(f"flip {axis}", lambda x: x.flip(axis)),
        Named(f"roll {axis}", lambda x: x.roll(1, axis)),
        Named(f"normalize {axis}", lambda x: F.normalize(x + 1, dim=axis)),
        Named(f"minus mean {axis}", lambda x: x - x.mean(axis, keepdim=True)),
        Named(f"over size {axis}", lambda x: x * 3 / x.shape[axis]),
        Named(f"repeat {axis}", lambda x: x.repeat_interleave(2, axis)),
        Named(f"diff {axis}", lambda x: x.diff(dim=axis)),
    ))  # fmt: skip


def windows(draw: random.Random, shape: Shape) -> nn.Module | None:
    rank = len(shape) - 2
    if rank not in (1, 2):
        return None
    padding = draw.choice((0, 1))
    size = draw.choice((2, 3))
    modes = ("nearest", ("linear", "bilinear")[rank - 1])
    mode = draw.choice(modes)
    kinds: list[nn.Module] = [
        getattr(nn, f"MaxPool{rank}d")(3, draw.choice((1, 2)), padding),
        getattr(nn, f"AvgPool{rank}d")(3, 1, padding, count_include_pad=draw.random() < 0.5),
        getattr(nn, f"AvgPool{rank}d")([2]),
        getattr(nn, f"AdaptiveAvgPool{rank}d")(size),
        getattr(nn, f"AdaptiveMaxPool{rank}d")(size),
        Named(f"interpolate {mode}", lambda x: F.interpolate(x, scale_factor=2, mode=mode)),
        getattr(nn, f"InstanceNorm{rank}d")(shape[1] or 1),
    ]
    if rank == 2:
        kinds.append(Named("unfold", lambda x: F.unfold(x, 2)))
        kinds.append(Named("grid sample", _sampled))
    return draw.choice(kinds)


def _sampled(x: Tensor) -> Tensor:
    grid = torch.zeros(x.shape[0], 3, 2, 2, dtype=x.dtype) + 0.3
    return F.grid_sample(x, grid, align_corners=False)


def pad(draw: random.Random, shape: Shape) -> nn.Module | None:
    count = draw.randint(1, min(3, len(shape) - 1))
    sizes = [draw.choice((0, 1, 2)) for _ in range(2 * count)]
    mode = draw.choice(("constant", "constant", "reflect", "replicate"))
    value = draw.choice((0.0, 0.5)) if mode == "constant" else None
    return Named(f"pad {sizes} {mode} {value}", lambda x: F.pad(x, sizes, mode=mode, value=value))


def expand(draw: random.Random, shape: Shape) -> nn.Module | None:
    ones = [dim for dim, size in enumerate(shape) if size == 1]
    if not ones:
        return None
    sizes = [-1] * len(shape)
    sizes[draw.choice(ones)] = 3
    return Named(f"expand {sizes}", lambda x: x.expand(sizes))


# Norms, vectors, elementwise ---------------------------------------------------------------------


def norm(draw: random.Random, shape: Shape) -> nn.Module | None:
    if draw.random() < 0.4 and shape[-1]:
        return nn.LayerNorm(shape[-1])
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if len(shape) not in kinds or not shape[1]:
        return None
    if draw.random() < 0.2 and shape[1] % 2 == 0:
        return nn.GroupNorm(2, shape[1])
    return kinds[len(shape)](shape[1])


def vector(draw: random.Random, shape: Shape) -> nn.Module | None:
    """A parameter that is broadcast from a random shape."""
    lead = draw.randrange(len(shape))
    sizes = [size if size and draw.random() < 0.6 else 1 for size in shape[lead:]]
    weight = nn.Parameter(torch.zeros(sizes))
    return draw.choice((
        Named(f"+ {sizes}", lambda x, w: x + w, w=weight),
        Named(f"* {sizes}", lambda x, w: x * w, w=weight),
        Named(f"- {sizes}", lambda x, w: w - x, w=weight),
        Named(f"max {sizes}", torch.maximum, w=weight),
        Named(f"clamp {sizes}", lambda x, w: x.clamp(min=w), w=weight),
        Named(f"where {sizes}", lambda x, w: torch.where(w > 0, x, w), w=weight),
    ))  # fmt: skip


def prelu(draw: random.Random, shape: Shape) -> nn.Module | None:
    if len(shape) < 2 or not shape[1]:
        return None
    return nn.PReLU(draw.choice((1, shape[1])))


def pointwise(draw: random.Random, shape: Shape) -> nn.Module | None:
    return draw.choice((
        Named("relu", F.relu), Named("tanh", torch.tanh), Named("sigmoid", torch.sigmoid),
        Named("gelu", F.gelu), Named("square", lambda x: x**2),
        Named("scale", lambda x: x * 0.3 + 0.1),
        Named("by batch", lambda x: x / x.shape[0]), Named("from", lambda x: 0.7 - x),
        Named("base", lambda x: 2.0 ** x.tanh()), Named("zeros", lambda x: x * 0 + 0.2),
        Named("at most batch", lambda x: x.clamp(max=x.shape[0])), Named("abs", torch.abs),
        Named("gate", lambda x: x * x.sigmoid()), Named("half", lambda x: x.float().double()),
    ))  # fmt: skip


# Products of activations -------------------------------------------------------------------------


def gram(draw: random.Random, shape: Shape) -> nn.Module | None:
    if len(shape) < 3:
        return None
    left = draw.random() < 0.5
    function = (lambda x: x @ x.transpose(-1, -2)) if left else (lambda x: x.transpose(-1, -2) @ x)
    return Named(f"gram {left}", function)


def attention(draw: random.Random, shape: Shape) -> nn.Module | None:
    if len(shape) not in (3, 4):
        return None
    causal = draw.random() < 0.5
    return Named(
        f"attention {causal}", lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=causal)
    )


PRODUCTS: tuple[Step, ...] = (linear, linear, conv, conv, conv, matmul, einsum, on_the_left)
MOVES: tuple[Step, ...] = (
    permute, permute, transpose, unsqueeze, squeeze, flatten, unflatten, regroup, to_batch,
    from_batch, shuffle, pixel_shuffle, cut, parts, expand,
)  # fmt: skip
OTHERS: tuple[Step, ...] = (
    reduce, along, along, windows, windows, pad, norm, vector, vector, prelu, pointwise, pointwise,
    pointwise, gram, attention, recurrent,
)  # fmt: skip
