"""Models that exports meet. They stand in a module, so that errors can name their lines."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """The least that has a weight; the others are like it but for their forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


class Pair(NamedTuple):
    left: Tensor
    right: list[Tensor]


@dataclasses.dataclass
class Scores:
    scores: Tensor
    count: int


class Several(nn.Module):
    """Integers in, a dict of many kinds out; a tied weight, and one for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight
        self.auxiliary = nn.Linear(4, 2)

    def forward(self, ids: Tensor, extra: dict[str, Any], *, scale: float = 1.0) -> Any:
        x = self.norm(self.embed(ids) * scale + extra["shift"][:, None])
        if self.training:
            return self.auxiliary(x)
        logits = self.out(x)
        return {
            "logits": logits,
            "best": logits.argmax(-1),
            "pair": Pair(x, [ids, x + 1]),
            "scores": Scores(logits.softmax(-1), 3),
            "none": None,
            "ids": ids,
        }


class Histogram(Linear):
    """An operator that ONNX has not."""

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return torch.histc(y)


class Branch(Linear):
    """Code that depends on values."""

    def forward(self, x: Tensor) -> Any:
        if x.sum() > 0:
            return self.linear(x)
        return -x


class TwoSamples(Linear):
    """Works for two samples only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.arange(8.0).reshape(2, 4))

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) + self.rows


class BySize(Linear):
    """Another computation for large batches, which an export does not see."""

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) if x.shape[0] > 2 else self.linear(x) + 1


class Noisy(Linear):
    """Random in eval mode."""

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) + torch.randn_like(x)


class Restless(Linear):
    """Writes into its input, and counts its calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        x += 1
        return self.linear(x) * self.calls


class Table(Linear):
    """Takes eighths alone."""

    def forward(self, x: Tensor) -> Any:
        if not torch.compiler.is_compiling() and (x * 8 % 1).any():
            raise ValueError("no such entry")
        return self.linear(x)


class PerSample(Linear):
    """As many outputs as samples."""

    def forward(self, x: Tensor) -> Any:
        return [self.linear(x[index]) for index in range(2 if len(x) == 2 else 1)]


class OneSample(Linear):
    """Works for one sample only, without saying so."""

    def forward(self, x: Tensor) -> Any:
        return self.linear(x).reshape(1, 2, 2)


class Alone(Linear):
    """Works for one sample only, and says so."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] != 1:
            raise ValueError("one sample, please")
        return self.linear(x)


class ZeroGamma(nn.Module):
    """The last batch norm of a residual block, as timm initialises it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        nn.init.zeros_(self.norm2.weight)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.norm1(self.conv1(x)).relu()
        return self.head((y + self.norm2(self.conv2(y))).mean((2, 3)))


class Anchors(nn.Module):
    """Keeps what it computed for the last width, as detectors keep their anchors."""

    width: Any = None
    anchors = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        if self.width != x.shape[1]:
            self.anchors = torch.arange(x.shape[1]) + x.new_zeros(x.shape[1])
            self.width = x.shape[1]
        return self.fc(x) * self.anchors


class Twins(nn.Module):
    """Two heads that begin as copies of each other, as YOLOv10's do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.second = copy.deepcopy(self.first)

    def forward(self, x: Tensor) -> Any:
        return self.first(x), self.second(x)
