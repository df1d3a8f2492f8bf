"""What was found in a file or folder: plain data, which turns itself into JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from st3fx.plan.sites import SkippedSite


@dataclass(frozen=True)
class Layer:
    """A weight of two dimensions or more.

    Attributes:
        name: Full name.
        shape: Its sizes.
        dtype: Of its scalars, as torch or ONNX names it.
        zeros: Scalars that are zero when it multiplies; ``None`` where only the model's own
            forward would tell.
        kernel: The operator that multiplies with it in an ONNX file; empty elsewhere.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    zeros: int | None
    kernel: str = ""

    @property
    def elements(self) -> int:
        """Scalars."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """This layer as JSON values."""
        return {**dataclasses.asdict(self), "shape": list(self.shape), "elements": self.elements}


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; a size that is free is its name, or ``?`` without one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Digest:
    """A digest that was looked at.

    Attributes:
        what: What it is of.
        holds: Whether that is as it was; ``None`` where there is nothing to compare with.
        said: In words, where that is not the usual.
    """

    what: str
    holds: bool | None
    said: str = ""


@dataclass(frozen=True)
class Step:
    """What can be done next: a command, or a line of Python, and what it does."""

    command: str
    does: str


@dataclass(frozen=True)
class Found:
    """What a file or folder is.

    Attributes:
        path: As it was given.
        kind: In words.
        format: Name and version of its format.
        bytes: Of it all.
        files: Name -> bytes of its parts.
        versions: Name -> version of what wrote it.
        model: What the model was built from, or the name that a graph has.
        method: With its granularity, in words.
        settings: All settings of the method.
        target: Sparsity that it is trained to; ``None`` where there is none, or it is learned.
        reached: Share of zeros among the weights of the layers, or of the sites; ``None`` where
            it is not known.
        step: Optimizer steps so far.
        total_steps: Of the whole training.
        progress: How far a training is, in words.
        scores: Name -> what an evaluation gave.
        sites: Weights that are made sparse.
        parameters: Scalars in all parameters; in a state dict, in all but batch norm's statistics.
        skipped: Weights that stay dense.
        digests: What was compared.
        opsets: Domain of operators -> version.
        inputs: Of a graph.
        outputs: Of a graph.
        kernels: Operator of ours -> how many there are in a graph.
        layers: Weights of two dimensions or more, in their order.
        notes: What else a reader should know, a sentence each.
        steps: What can be done next.
    """

    path: str
    kind: str
    format: str
    bytes: int
    files: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    model: str = ""
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    target: float | None = None
    reached: float | None = None
    step: int | None = None
    total_steps: int | None = None
    progress: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    sites: int | None = None
    parameters: int | None = None
    skipped: tuple[SkippedSite, ...] = ()
    digests: tuple[Digest, ...] = ()
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    kernels: dict[str, int] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """This as JSON values; everything is there, also what does not apply."""
        plain = dataclasses.asdict(dataclasses.replace(self, layers=()))
        return {**plain, "layers": [layer.to_dict() for layer in self.layers]}


def share_of_zeros(layers: tuple[Layer, ...]) -> float | None:
    """Share of zeros among the weights of layers; ``None`` where one is not known, or none is."""
    counts = [layer.zeros for layer in layers]
    elements = sum(layer.elements for layer in layers)
    if not elements or any(count is None for count in counts):
        return None
    return sum(count or 0 for count in counts) / elements
