"""torchvision: every model that it lists."""

from __future__ import annotations

from torch import nn

from benchmarks import cases
from benchmarks.coverage.case import Call, Case


def names() -> list[str]:
    """All models that torchvision lists."""
    return cases.names()


def case(name: str) -> Case:
    """One model, on small images."""

    def build() -> nn.Module:
        return cases.build(name)

    def inputs(batch: int, changed: bool) -> Call:
        return cases.inputs(name, batch, larger=changed)

    return Case(name, build, inputs, one_thread=name.startswith("mvit"))
