"""One model of the benchmark: how it is built, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""

Inputs: TypeAlias = Callable[[int, bool], Call]
"""(batch size, whether in another size than the example) -> a call of the model as in training."""


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: As its library calls it.
        build: Makes it, with random weights and without a download.
        inputs: Makes calls of it.
        options: For ``st3fx.convert``.
        batch: Samples in the example.
        refused: Part of the error with which it is refused; empty where it is to be converted.
        one_thread: Whether with several the original itself gives other gradients at each run.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 2
    refused: str = ""
    one_thread: bool = False


def generator() -> torch.Generator:
    """The same numbers for every call."""
    return torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    """A tensor of normal random numbers."""
    return torch.randn(*shape, generator=generator())


def images(size: int, channels: int = 3, other: int | None = None) -> Inputs:
    """Square images of ``size`` pixels; ``other`` is the other size, or the same again."""

    def inputs(batch: int, changed: bool) -> Call:
        side = (other or size) if changed else size
        return (normal(batch, channels, side, side),), {}

    return inputs


def tensors(*shape: int, other: tuple[int, ...] = ()) -> Inputs:
    """One tensor of a batch of ``shape``; ``other`` is the other shape, or the same again."""

    def inputs(batch: int, changed: bool) -> Call:
        return (normal(batch, *((other or shape) if changed else shape)),), {}

    return inputs


def integers(high: int, *shape: int) -> Tensor:
    """A tensor of random integers from 2 to ``high`` - 1: 0 and 1 are often padding."""
    return torch.randint(2, high, shape, generator=generator())
