"""Random models of all that a pruning tool meets: raw parameters, methods, shared parts, writes.

A model is a list of steps on ``(batch, 4, 6)`` activations. Each step reads its weights in another
way; public methods run parts of the list. The seed is all that a model is made of.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

FEATURES = 6
SHAPE = (4, FEATURES)


class Raw(nn.Module):
    """A product with a parameter of its own, on either side, or by einsum."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        size = SHAPE[0] if kind == 1 else FEATURES
        self.w, self.kind = nn.Parameter(torch.randn(size, size) * 0.4), kind

    def project(self, x: Tensor) -> Any:
        if self.kind == 1:
            return self.w @ x
        if self.kind == 2:
            return torch.einsum("btd,de->bte", x, self.w)
        return x @ self.w if self.kind == 3 else F.linear(x, self.w)

    def forward(self, x: Tensor) -> Any:
        return self.project(x).tanh()


class Reads(nn.Module):
    """Multiplies with the weight of a layer that it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, FEATURES)

    def project(self, x: Tensor) -> Any:
        return F.linear(self.fc(x), self.fc.weight)

    def forward(self, x: Tensor) -> Any:
        return self.project(x).relu() + x


class Convolves(nn.Module):
    """A convolution over time, channels in front by a permutation; or with features as time."""

    def __init__(self, permuted: bool) -> None:
        super().__init__()
        size = FEATURES if permuted else SHAPE[0]
        self.permuted, self.conv = permuted, nn.Conv1d(size, size, 3, padding=1)

    def project(self, x: Tensor) -> Any:
        return self.conv(x.transpose(1, 2)).transpose(1, 2) if self.permuted else self.conv(x)

    def forward(self, x: Tensor) -> Any:
        return self.project(x).sigmoid()


class Branches(Raw):
    """A branch on data, so that no trace gets through."""

    def forward(self, x: Tensor) -> Any:
        y = self.project(x)
        return y if y.sum() > -1e9 else -y


class Recomputes(Raw):
    """Activation checkpointing around a method."""

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.project, x, use_reentrant=False)


class Remembers(nn.Module):
    """Writes to a buffer and to an attribute in each call in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, FEATURES)
        self.mean: Any
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.last: Any = None

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        self.last = x.detach()
        return self.fc(x - self.mean)


class Clamps(nn.Module):
    """Writes to its weight in its forward."""

    def __init__(self, by_data: bool) -> None:
        super().__init__()
        self.fc, self.by_data = nn.Linear(FEATURES, FEATURES), by_data

    def forward(self, x: Tensor) -> Any:
        if self.by_data:
            self.fc.weight.data = self.fc.weight.data.clamp(-0.3, 0.3)
        else:
            self.fc.weight.data.clamp_(-0.3, 0.3)
        return self.fc(x)


class Standardises(nn.Linear):
    """A weight that is computed before it multiplies."""

    def forward(self, x: Tensor) -> Any:
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(FEATURES, FEATURES, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.rnn(x)[0]


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, need_weights=False)[0]


MAKERS: dict[str, Callable[[random.Random], nn.Module]] = {
    "linear": lambda draw: nn.Linear(FEATURES, FEATURES, bias=draw.random() < 0.5),
    "raw": lambda draw: Raw(draw.randrange(4)),
    "reads": lambda draw: Reads(),
    "convolves": lambda draw: Convolves(draw.random() < 0.5),
    "branches": lambda draw: Branches(draw.randrange(4)),
    "recomputes": lambda draw: Recomputes(draw.randrange(4)),
    "remembers": lambda draw: Remembers(),
    "clamps": lambda draw: Clamps(draw.random() < 0.5),
    "standardises": lambda draw: Standardises(FEATURES, FEATURES),
    "weight norm": lambda draw: parametrizations.weight_norm(nn.Linear(FEATURES, FEATURES)),
    "recurs": lambda draw: Recurs(),
    "attends": lambda draw: Attends(),
    "norm": lambda draw: nn.LayerNorm(FEATURES),
    "relu": lambda draw: nn.ReLU(),
}


class Made(nn.Module):
    """Steps one after another, with methods that run parts of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        names = [draw.choice(list(MAKERS)) for _ in range(draw.randint(2, 6))]
        self.kinds = ["linear", *names]
        self.steps = nn.ModuleList(MAKERS[name](draw) for name in self.kinds)
        self.order = list(range(len(self.steps)))
        if draw.random() < 0.4:  # a part that is used twice
            self.order.append(draw.choice(self.order))
        self.out = nn.Parameter(torch.randn(FEATURES, 3) * 0.5)
        if draw.random() < 0.3 and len(self.steps) > 2:  # one weight in two layers
            layers = [m for m in self.steps if type(m) is nn.Linear]
            if len(layers) > 1:
                layers[1].weight = layers[0].weight

    def encode(self, x: Tensor) -> Any:
        for index in self.order:
            x = self.steps[index](x)
        return x

    def head(self, x: Tensor) -> Any:
        return x.mean(1) @ self.out

    def late(self, x: Tensor) -> Any:
        """A generator of what each step gives."""
        for index in self.order:
            x = self.steps[index](x)
            yield x

    def projections(self, x: Tensor) -> list[Tensor]:
        return [m.project(x) for m in self.steps if hasattr(m, "project")]  # type: ignore[operator]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.encode(x))


CALLS: dict[str, Callable[[Any, Tensor], list[Tensor]]] = {
    "forward": lambda m, x: [m(x)],
    "encode": lambda m, x: [m.encode(x)],
    "head": lambda m, x: [m.head(x)],
    "late": lambda m, x: list(m.late(x)),
    "projections": lambda m, x: m.projections(x),
}
"""Every public method of a made model."""
