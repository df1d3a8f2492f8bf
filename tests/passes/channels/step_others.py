"""Operators to draw: reductions, windows, norms, vectors, and products of activations."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.channels.steps import Named, Shape, Step, own_axis


def reduce(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = own_axis(draw, shape)
    if axis < 0 or len(shape) < 3:
        return None
    keep = draw.random() < 0.4
    name = draw.choice(("mean", "sum", "amax", "amin", "logsumexp", "var", "norm", "prod"))
    return Named(f"{name} {axis} {keep}", lambda x: getattr(x, name)(dim=axis, keepdim=keep))


def along(draw: random.Random, shape: Shape) -> nn.Module | None:
    axis = own_axis(draw, shape)
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
    rank = len(shape) - (1 if draw.random() < 0.1 else 2)
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


OTHERS: tuple[Step, ...] = (
    reduce, along, along, windows, windows, pad, norm, vector, vector, prelu, pointwise, pointwise,
    pointwise, gram, attention, recurrent,
)  # fmt: skip
