"""RigL: sparse from the first step, with masks that follow gradients (Evci et al., ICML 2020).

Source: arXiv 1911.11134, not compared with its text line by line. Symbols: ``S`` sparsity, ``N_l``
weights of layer ``l``, ``n_l`` those that it keeps, ``t`` optimizer step.

    n_l = (1 − s_l) · N_l,   Σ n_l = (1 − S) · Σ N_l      constant over the training
    1 − s_l ∝ Σ dims / Π dims of the weight               Erdős–Rényi–Kernel; 1 at most
    every ΔT steps, while t < T_end:
        k = α/2 · (1 + cos(t·π/T_end)) · n_l              rounded down
        drop the k weights with the smallest |w|
        grow the k with the largest |∂L/∂ŵ| of what is pruned then, from the value 0

The masks at the start are random. Defaults: ``ΔT = 100``, ``α = 0.3``, ``T_end`` at three
quarters of the training.

Here it differs from the paper in this:

* At a step at which masks move the paper's algorithm leaves the weights alone. Here the optimizer
  has made its step, with the masked gradient, before they move; the gradient is that of the step.
* A weight that drops and grows at once is the same weight afterwards, value and momentum.
* In a training so short that there would be fewer than ten moves, ``ΔT`` is less.
* Layers are all sites. The paper leaves MobileNet's depthwise convolutions dense:
  ``skip_depthwise=True`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from st3fx.errors import MethodError
from st3fx.methods.moving import GrowingMethod, MaskedSite, Move
from st3fx.plan.sites import Site
from st3fx.sparsity.masks import cosine, uniform
from st3fx.sparsity.threshold.search import GlobalThreshold


@dataclass(frozen=True)
class RigL(GrowingMethod):
    """Sparse from the start: small weights go, those with large gradients come.

    Attributes:
        sparsity: Over all sites, from the conversion on, 0 ≤ sparsity < 1.
        distribution: How many weights each site keeps: ``"erk"`` (Erdős–Rényi–Kernel: small layers
            stay denser), ``"uniform"`` (the first site stays dense).
        interval: ``ΔT``, optimizer steps between two moves.
        fraction: ``α``, share of a site's weights that are replaced at first.
        end: ``T_end``, as a fraction of the training, after which masks stay.
        seed: Of the random masks at the start.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.
        granularity: What goes and comes together; not N of M.

    Raises:
        MethodError: For values outside these.
    """

    distribution: Literal["erk", "uniform"] = field(default="erk", kw_only=True)
    end: float = field(default=0.75, kw_only=True)

    name: ClassVar[str] = "rigl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distribution not in ("erk", "uniform"):
            raise MethodError(f"{self._call('distribution')}: give 'erk' or 'uniform'")
        if not 0.0 <= self.end <= 1.0:
            raise MethodError(f"{self._call('end')}: give a fraction of the training, 0 to 1")

    @property
    def start(self) -> float:
        """The target itself."""
        return self.sparsity

    def at(
        self, step: int, total_steps: int, floor: float = 0.0, target: float | None = None
    ) -> float:
        """The target at every step."""
        return self.sparsity if target is None else target

    def densities(self, sites: Sequence[Site], density: float) -> list[float]:
        """By the distribution."""
        if self.distribution == "erk":
            return super().densities(sites, density)
        return uniform(self._shares(sites), density)

    def _span(self, total_steps: int) -> int:
        """Steps of the training in which masks move."""
        return round(self.end * total_steps)

    def moves_at(self, step: int, total_steps: int) -> bool:
        """Every ``ΔT`` steps, before ``T_end``."""
        span = self._span(total_steps)
        return 0 < step < span and step % self.every(span) == 0

    def grows_at(self, step: int, total_steps: int) -> bool:
        """At every move."""
        return self.moves_at(step, total_steps)

    def moved(self, sites: Sequence[MaskedSite], move: Move) -> list[Tensor]:
        """A share of each site's weights is replaced."""
        fraction = cosine(self.fraction, move.step, self._span(move.total_steps))
        counts = self.counts([site.site for site in sites], move.sparsity)
        return self.replaced(sites, fraction, counts)

    def by_magnitude(
        self, sites: Sequence[MaskedSite], sparsity: float, finder: GlobalThreshold
    ) -> list[Tensor]:
        """The largest of each site, which keeps what the distribution gives it."""
        return self.largest_of_each(sites, sparsity)
