"""ST-3 and ST-3σ: soft threshold, rescaling, straight-through gradients (arXiv 2212.01076)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from st3fx import functional
from st3fx.errors import MethodError
from st3fx.schedule import CubicSchedule
from st3fx.sites import Site


@dataclass(frozen=True)
class ST3:
    """Straight-through soft thresholding with one global threshold.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1.
        normalize: ``None`` compares magnitudes as they are (ST-3); ``"sigma"`` divides those of a
            layer by ``σ_l = 1/√(Σ dims of its weight)`` (ST-3σ).
        rescale: Whether output channels are rescaled to the magnitude that they had.
        schedule: The sparsity over training.

    Raises:
        MethodError: For values outside these.
    """

    sparsity: float = 0.9
    normalize: Literal["sigma"] | None = None
    rescale: bool = True
    schedule: CubicSchedule = field(default_factory=CubicSchedule)

    name: ClassVar[str] = "st3"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.normalize not in (None, "sigma"):
            raise MethodError(f"ST3(normalize={self.normalize!r}): give None or 'sigma'")

    @property
    def op(self) -> Callable[..., Tensor]:
        """``st3fx::soft_threshold``."""
        op: Callable[..., Tensor] = torch.ops.st3fx.soft_threshold.default
        return op

    def state(self, site: Site, weight: Tensor) -> dict[str, Tensor]:
        """The layer threshold ``θ_l``: fp32, 0-dimensional, inactive."""
        return {"threshold": torch.full((), functional.INACTIVE, device=weight.device)}

    def trial(self, site: Site, weight: Tensor) -> dict[str, Tensor]:
        """The mean magnitude as threshold."""
        return {"threshold": weight.detach().float().abs().mean()}

    def constants(self, site: Site) -> tuple[Any, ...]:
        """Output-channel layout and the rescaling flag."""
        return (list(site.layout.channel_dims), site.layout.groups, self.rescale)

    def scale(self, site: Site) -> float:
        """``σ_l``."""
        return 1.0 if self.normalize is None else 1.0 / math.sqrt(sum(site.shape))


def check_sparsity(sparsity: float) -> None:
    """Refuse a sparsity outside [0, 1).

    Raises:
        MethodError: With what is allowed.
    """
    if not 0.0 <= sparsity < 1.0:
        raise MethodError(
            f"sparsity {sparsity} is outside [0, 1): give the share of weights to prune, "
            "for example 0.9"
        )
