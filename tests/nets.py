"""Models that several tests use. They stand in a module, so that they can be pickled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block with batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Any:
        return F.relu(x + self.conv2(self.norm(self.conv1(x)).relu()))


class Net(nn.Module):
    """One island with batch norm, dropout of both kinds and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Block(8)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.fc.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.drop(self.block(self.stem(x))).mean((2, 3))
        y = F.dropout(self.again(self.fc(y).relu()), 0.1, self.training)
        return self.head(y)


class Mixed(nn.Module):
    """Several islands: attention that keeps its own forward, and a branch on data."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.raw = nn.Parameter(torch.randn(8, 4) / 3)

    def forward(self, x: Tensor) -> Any:
        y = self.embed(x)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y = y + self.mlp(y)
        if y.sum() > 1e9:
            y = -y
        return y @ self.raw


def image(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(11))


def sequence(batch: int = 3) -> Tensor:
    return torch.randn(batch, 5, 6, generator=torch.Generator().manual_seed(12))


MODELS: dict[str, tuple[type[nn.Module], Any]] = {
    "one island": (Net, image),
    "several islands": (Mixed, sequence),
}
