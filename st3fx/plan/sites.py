"""The plan of a conversion: which parameters are sparsified, which are not, and why.

Plain data, without references to modules or graph nodes: it is pickled with the model, written
into bundles and shown to the user.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Where the output channels of a weight lie.

    Attributes:
        channel_dims: The dimensions that together index output channels; empty where the uses of
            a weight disagree, so that the whole weight counts as one channel.
        groups: For a transposed convolution ``(groups·a, b, *kernel)``, whose output channels are
            spread over blocks of dimension 0: ``channel_dims`` then index the weight viewed as
            ``(groups, a, b, *kernel)``. 1 otherwise.
    """

    channel_dims: tuple[int, ...] = (0,)
    groups: int = 1


@dataclass(frozen=True)
class Site:
    """One weight that feeds a convolution or matrix product, with one threshold.

    Attributes:
        name: Full name of the weight, e.g. ``layer1.0.conv1.weight``.
        parameters: Full names of the parameters that it is made of: its own name, or, for a
            computed weight (standardised, ``weight_norm``), those that the computation reads; of
            a tied embedding's projection, all names of the parameter.
        aliases: Other names of the same parameter (tied weights).
        shape: Shape of the weight.
        op: What multiplies with it: ``conv2d``, ``linear``, ``matmul``, ...
        layout: Where the output channels lie.
        holders: Full names of the modules whose own forward multiplies with it.
        computed: Whether the weight is computed from its parameters before it multiplies.
        groups: Groups of the convolution; 1 for everything else.
        cost: How often each scalar multiplies in one call of the example in training.
        tied: Whether the parameter is an embedding's table too, whose lookups read it as it is.
    """

    name: str
    parameters: tuple[str, ...]
    shape: tuple[int, ...]
    op: str
    layout: Layout
    holders: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    computed: bool = False
    groups: int = 1
    cost: int = 1
    tied: bool = False

    @property
    def numel(self) -> int:
        """Number of scalars in the weight."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads a single input channel."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def in_channels(self) -> int:
        """Input channels of a convolution, input features of a matrix product."""
        if "conv_transpose" in self.op:
            return self.shape[0]
        if "conv" in self.op:
            return self.shape[1] * self.groups
        outputs = 1
        for dim in self.layout.channel_dims:
            outputs *= self.shape[dim]
        return self.numel // outputs


@dataclass(frozen=True)
class SkippedSite:
    """A parameter that multiplies and stays dense, with the reason; ``aliases`` as of a site."""

    name: str
    shape: tuple[int, ...]
    op: str
    reason: str
    aliases: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of scalars in the parameter."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class IslandInfo:
    """A module whose forward was captured as fx graphs.

    Attributes:
        name: Full name of the module; the empty string is the model itself.
        modes: One entry per captured graph: ``train``, ``eval``, or ``both``.
        nodes: Nodes of the largest of them.
        guards: What must hold of a call for the graphs to run, beside the modules' own settings,
            in words: ``x.shape[0] > 4 is False (model.py:12)``.
    """

    name: str
    modes: tuple[str, ...]
    nodes: int
    guards: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpaqueModule:
    """A module that keeps its own forward, with what stopped the trace.

    Attributes:
        name: Full name of the module.
        type: Its class.
        reason: What stopped the trace, and where.
        source: The line of code that did, if a line did.
    """

    name: str
    type: str
    reason: str
    source: str = ""


@dataclass(frozen=True)
class SparsityPlan:
    """What a conversion does to a model.

    Attributes:
        sites: The sparsified weights in the order of their execution.
        skipped: Multiplying parameters that stay dense.
        islands: Modules captured as graphs.
        opaque: Modules on the way to the islands that were not captured.
        method: Name of the method, e.g. ``st3``.
        target: Final sparsity over all sites, 0 ≤ target < 1; ``None`` where it is learned.
        total_parameters: Scalars in all parameters of the model.
        edges: Who feeds whom among sites, joins, inputs and outputs of the islands, by name.
        verified: Whether the converted model was compared with the original.
        granularity: What is pruned together, e.g. ``block:4``.
        targets: Full name of each site with a final sparsity of its own, and that.
    """

    sites: tuple[Site, ...]
    skipped: tuple[SkippedSite, ...] = ()
    islands: tuple[IslandInfo, ...] = ()
    opaque: tuple[OpaqueModule, ...] = ()
    method: str = "st3"
    target: float | None = 0.0
    total_parameters: int = 0
    edges: tuple[tuple[str, str], ...] = ()
    verified: bool = False
    granularity: str = "unstructured"
    targets: tuple[tuple[str, float], ...] = ()

    @property
    def method_text(self) -> str:
        """``st3``, or with what is pruned together: ``st3 (block:4)``."""
        plain = self.granularity == "unstructured"
        return self.method if plain else f"{self.method} ({self.granularity})"

    def fed_by(self, name: str) -> tuple[str, ...]:
        """The sites, joins and inputs whose outputs reach a site, as far as graphs show it."""
        return tuple(source for source, target in self.edges if target == name)

    @property
    def numel(self) -> int:
        """Number of scalars over all sites."""
        return sum(site.numel for site in self.sites)

    @property
    def prunable(self) -> int:
        """Scalars in all weights that multiply, vectors apart, sparsified or not."""
        left = [s for s in self.skipped if len(s.shape) > 1 and s.op != "none"]
        return self.numel + sum(item.numel for item in left)

    def to_dict(self) -> dict[str, Any]:
        """This plan as JSON values."""
        return dataclasses.asdict(self)
