"""Small networks with channels that are empty, and random ones of the same parts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ShapesCollection
from torch.nn import functional as F

from st3fx.passes.channels.channel_report import ChannelReport
from st3fx.passes.channels.eliminate import eliminate

EXACT = 1e-12
"""Largest difference over the largest output, in float64."""


def reduced(model: nn.Module, *inputs: Tensor) -> tuple[fx.GraphModule, ChannelReport]:
    """A model without its dead channels; its outputs are compared at three batch sizes."""
    shapes = ShapesCollection()
    for tensor in inputs:
        shapes[tensor] = {0: Dim.DYNAMIC}
    program = torch.export.export(model, inputs, {}, dynamic_shapes=shapes, strict=False)
    graph, report = eliminate(program)
    generator = torch.Generator().manual_seed(7)
    for batch in (1, 2, 5):
        values = [
            torch.randn(batch, *x.shape[1:], generator=generator, dtype=x.dtype)
            if x.is_floating_point()
            else x[torch.arange(batch) % len(x)]
            for x in inputs
        ]
        with torch.no_grad():
            wanted, given = model(*values), graph(*values)
        assert wanted.shape == given.shape
        scale = float(wanted.abs().max()) or 1.0
        assert float((wanted - given).abs().max()) <= EXACT * scale
    return graph, report


def emptied(model: nn.Module, share: float = 0.4, seed: int = 0) -> Any:
    """In float64 and eval mode, with filters and columns of zeros, and constants that matter."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(low + (high - low) * values)

    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                fan = max(1, parameter[0].numel())
                uniform(parameter, -((6 / fan) ** 0.5), (6 / fan) ** 0.5)
                parameter[torch.rand(len(parameter), generator=generator) < share] = 0
                columns = torch.rand(parameter.shape[1], generator=generator) < share / 4
                parameter[:, columns] = 0
            else:
                uniform(parameter, -0.5, 0.5 if name.endswith("bias") else 1.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                uniform(module.running_mean, -0.2, 0.2)
                uniform(module.running_var, 0.5, 2)
    return model


class Chain(nn.Module):
    """Parts one after the other; each may read what came before."""

    def __init__(self, parts: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.parts, self.head = nn.ModuleList(parts), head

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.head(x)  # type: ignore[no-any-return]


class Both(nn.Module):
    """Two branches, joined."""

    def __init__(self, left: nn.Module, right: nn.Module, join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.left(x), self.right(x))


class Function(nn.Module):
    """A function without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.up(self.down(x.mean((2, 3), keepdim=True)).relu())
        return x * gate.sigmoid()


def shuffle(x: Tensor, groups: int) -> Tensor:
    """As in ShuffleNet."""
    batch, width, height, length = x.shape
    x = x.view(batch, groups, width // groups, height, length).transpose(1, 2).contiguous()
    return x.view(batch, width, height, length)


def concatenated(left: Tensor, right: Tensor) -> Tensor:
    """Along the channels."""
    return torch.cat([left, right], 1)


ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu, F.relu6, F.silu, F.gelu, F.hardswish, torch.sigmoid, torch.tanh, torch.neg, torch.exp,
    lambda x: x * 2 + 1, lambda x: F.leaky_relu(x, 0.1), lambda x: x.clamp(-0.5, 0.7),
)  # fmt: skip


def random_net(seed: int) -> Any:
    """A network for (batch, 4, 8, 8) of parts that are drawn."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    width, parts = 4, []
    for _ in range(draw.randint(3, 7)):
        part, width = _part(draw, width)
        parts.append(part)
    if draw.random() < 0.5:
        head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(width * 4, 3))
    else:
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    return emptied(Chain(parts, head), share=draw.choice((0.2, 0.5, 0.8, 0.95)), seed=seed)


def _layer(draw: random.Random, width: int, out: int) -> Any:
    """A convolution, perhaps with batch norm, and an activation."""
    kernel = draw.choice((1, 3, 3))
    groups = draw.choice((1, 1, 2, width)) if width % 2 == 0 else 1
    out = -(-out // groups) * groups
    mode: Any = draw.choice(("zeros", "zeros", "reflect"))
    pads = kernel // 2
    layers: list[nn.Module] = [
        nn.Conv2d(width, out, kernel, padding=pads, groups=groups, bias=draw.random() < 0.5,
                  padding_mode=mode)
    ]  # fmt: skip
    if draw.random() < 0.5:
        layers.append(nn.BatchNorm2d(out))
    layers.append(Function(draw.choice(ACTIVATIONS)))
    return nn.Sequential(*layers)


def _part(draw: random.Random, width: int) -> tuple[nn.Module, int]:
    kind = draw.randrange(12)
    out = draw.choice((4, 6, 8, 12))
    layer = _layer(draw, width, out)
    out = layer[0].out_channels
    if kind < 4:
        return layer, out
    if kind == 4:
        inner = nn.Sequential(layer, nn.Conv2d(out, width, 3, padding=1))
        return Both(nn.Identity(), inner, torch.add), width
    if kind == 5:
        return Both(layer, nn.Conv2d(width, 4, 1), concatenated), out + 4
    if kind == 6:
        return nn.Sequential(layer, Gate(out)), out
    if kind == 7:
        pool = draw.choice((nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1,
                            count_include_pad=False), nn.Upsample(scale_factor=1.5)))  # fmt: skip
        return nn.Sequential(layer, pool, nn.AdaptiveMaxPool2d(8)), out
    if kind == 8:
        return nn.Sequential(layer, Function(lambda x: shuffle(x, 2))), out
    if kind == 9:
        left = Function(lambda x: x[:, : out // 2])
        right = Function(lambda x: x.chunk(2, 1)[1].relu())
        return nn.Sequential(layer, Both(left, right, concatenated)), out
    if kind == 10:
        up = nn.Sequential(nn.Conv2d(width, 16, 1), nn.PixelShuffle(2), nn.AvgPool2d(2))
        return up, 4
    padded = Function(lambda x: F.pad(x[:, :, ::1, ::1], (0, 0, 0, 0, 1, 1)))
    return nn.Sequential(nn.ConvTranspose2d(width, out, 3, padding=1), padded), out + 2
