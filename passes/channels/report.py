"""What dead-channel elimination removed, and what stays for which reason."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerChannels:
    """One weight before and after.

    Attributes:
        name: Of the weight.
        inputs: Channels that it reads, before and after; 0 after: the layer is gone.
        outputs: Channels that it computes, before and after.
        parameters: Scalars in it, before and after.
        macs: Multiplications of one sample in a dense runtime, padding counted, before and after.
        constant: Outputs that are constant before: filters without a nonzero, and what follows.
        kept: Reason -> how many of the constant outputs stay for it.
    """

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    constant: int
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything of it was removed."""
        return self.parameters[0] != self.parameters[1]


@dataclass(frozen=True)
class ChannelReport:
    """What became of a model's channels.

    Attributes:
        layers: Each weight that multiplies, in the order of the graph.
        parameters: Scalars in all parameters that the graph reads, before and after.
        operators: Calls in the graph, before and after.
    """

    layers: tuple[LayerChannels, ...]
    parameters: tuple[int, int]
    operators: tuple[int, int]

    @property
    def channels(self) -> tuple[int, int]:
        """Outputs of all layers, before and after."""
        return _pair(self.layers, "outputs")

    @property
    def macs(self) -> tuple[int, int]:
        """Multiplications of one sample in a dense runtime, before and after."""
        return _pair(self.layers, "macs")

    @property
    def constant(self) -> int:
        """Outputs that are constant before."""
        return sum(layer.constant for layer in self.layers)

    @property
    def kept(self) -> dict[str, int]:
        """Reason -> how many constant outputs stay for it."""
        total: Counter[str] = Counter()
        for layer in self.layers:
            total.update(layer.kept)
        return dict(total.most_common())

    def to_dict(self) -> dict[str, Any]:
        """This report as JSON values."""
        totals = {"channels": self.channels, "macs": self.macs, "kept": self.kept}
        return {**dataclasses.asdict(self), **totals, "constant": self.constant}


def _pair(layers: tuple[LayerChannels, ...], name: str) -> tuple[int, int]:
    pairs = [getattr(layer, name) for layer in layers]
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)
