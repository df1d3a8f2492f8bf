"""What a sparsification method must provide: one operator between a weight and its uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from st3fx.schedule import CubicSchedule
from st3fx.sites import Site


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of settings with the operator that makes effective weights.

    The operator is called as ``op(weight, *state, *constants)``: in the graph as one node, in an
    untraced forward by hand. ``state`` are tensors that live on the module that owns the weight.

    Attributes:
        name: Name in the table of methods and in bundles.
    """

    name: ClassVar[str]

    @property
    def sparsity(self) -> float:
        """Final sparsity over all sites, 0 ≤ sparsity < 1."""
        ...

    @property
    def schedule(self) -> CubicSchedule:
        """The sparsity over training."""
        ...

    @property
    def op(self) -> Callable[..., Tensor]:
        """The registered operator, an ``OpOverload``."""
        ...

    def state(self, site: Site, weight: Tensor) -> dict[str, Tensor]:
        """The site's state tensors at conversion, by name, in the order of the op's arguments."""
        ...

    def trial(self, site: Site, weight: Tensor) -> dict[str, Tensor]:
        """State with which a good part of the weight is pruned, to verify a conversion with."""
        ...

    def constants(self, site: Site) -> tuple[Any, ...]:
        """The op's remaining arguments: numbers, strings, flags."""
        ...

    def scale(self, site: Site) -> float:
        """``σ_l``: divides the site's magnitudes before the global quantile."""
        ...
