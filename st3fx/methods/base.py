"""What a sparsification method must provide: one operator between a weight and its uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from st3fx.errors import MethodError
from st3fx.plan.sites import Site
from st3fx.sparsity.formula import INACTIVE, Formula, channel_view
from st3fx.sparsity.granularity import Granularity, Unstructured, granularity_of, scores
from st3fx.sparsity.ops import Op, Operator
from st3fx.sparsity.schedule import CubicSchedule


@dataclass(frozen=True)
class Method:
    """Settings, frozen, with the operator that makes effective weights.

    The operator is called as ``op(weight, threshold, mask, *constants)``: in the graph as one node,
    in an untraced forward by hand. Threshold and mask live on the module that owns the weight.

    Attributes:
        name: Name in the table of methods and in bundles.
        operator: The registered operator with its formula and gradient rule, whose contract is
            that of :class:`st3fx.sparsity.formula.Formula`.
        granularity: What is pruned together: single weights, blocks, N of M, channels.
    """

    granularity: Granularity = field(default=Unstructured(), kw_only=True)

    name: ClassVar[str]
    operator: ClassVar[Operator]

    def __post_init__(self) -> None:
        object.__setattr__(self, "granularity", granularity_of(self.granularity))

    @property
    def op(self) -> Op:
        """The registered ``OpOverload``."""
        return self.operator.op

    @property
    def formula(self) -> Formula:
        """The effective weight."""
        return self.operator.formula

    @property
    def straight_through(self) -> bool:
        """Whether the latent weight gets the effective weight's gradient as it is."""
        return self.operator.gradient is None

    @property
    def target(self) -> float | None:
        """Final sparsity over all sites; ``None`` where thresholds are learned."""
        raise NotImplementedError

    def threshold(self, site: Site, weight: Tensor) -> Tensor:
        """The site's threshold at conversion, fp32, inactive: the effective weight is the weight.

        A parameter if it is learned, else a buffer's value.
        """
        raise NotImplementedError

    def trial(self, site: Site, weight: Tensor) -> Tensor:
        """A threshold with which a good part of the weight is pruned, to verify with."""
        raise NotImplementedError

    def mean_magnitude(self, site: Site, weight: Tensor) -> Tensor:
        """The mean over all that can be pruned together, 0-dimensional; fp32."""
        grouping, latent = self.granularity.grouping(site), weight.detach().float()
        if grouping is None:
            return latent.abs().mean()
        values = [part.values.reshape(-1) for part in scores(latent, latent.shape, grouping)]
        return torch.cat(values).mean() if values else latent.new_zeros(())

    def constants(self, site: Site) -> tuple[Any, ...]:
        """The method's own further arguments of the op: numbers, flags."""
        return ()

    @final
    def arguments(self, site: Site) -> tuple[Any, ...]:
        """All further arguments of the op: the constants, then the groups if there are any."""
        return (*self.constants(site), *self.granularity.constants(site))

    def state(self, site: Site, weight: Tensor) -> dict[str, Tensor]:
        """The site's tensors at conversion, by name, in the order of the op's arguments."""
        mask = torch.empty(0, dtype=torch.bool, device=weight.device)
        return {"threshold": self.threshold(site, weight), "mask": mask}


class _Default(float):
    """A number that was not given."""


_DEFAULT = _Default(0.9)


@dataclass(frozen=True)
class ScheduledMethod(Method):
    """One global threshold for a sparsity that follows a schedule.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1; by default 0.9, of N of M the one
            that it has, and where each step draws its own, the largest of these.
        schedule: The sparsity over training.
        budget: What the sparsity is a share of: ``"weights"`` counts each weight once, ``"macs"``
            as often as it multiplies in the example, so that the share of multiplications left is
            1 − sparsity.

    Raises:
        MethodError: For values outside these.
    """

    sparsity: float = _DEFAULT
    schedule: CubicSchedule = field(default_factory=CubicSchedule, kw_only=True)
    budget: Literal["weights", "macs"] = field(default="weights", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.granularity.most
        if self.sparsity is _DEFAULT:
            draw = self._draw
            largest = 0.9 if draw is None else draw[1]
            object.__setattr__(self, "sparsity", largest if most == 1 else most)
        check_sparsity(self.sparsity)
        if most < 1 and math.isclose(self.sparsity, most):
            object.__setattr__(self, "sparsity", most)
        elif most < 1:
            raise MethodError(
                f"{self.granularity.text} has a sparsity of {most:.4g}, not {self.sparsity}: leave "
                "the sparsity out"
            )
        if self.budget not in ("weights", "macs"):
            raise MethodError(f"budget={self.budget!r}: give 'weights' or 'macs'")
        self._check_draw()

    @property
    def _draw(self) -> tuple[float, float] | None:
        # A file may have anything here, which is refused by its type, later.
        schedule: Any = self.schedule
        return schedule.draw if isinstance(schedule, CubicSchedule) else None

    def _check_draw(self) -> None:
        draw = self._draw
        if draw is None:
            return
        if self.granularity.most < 1:
            raise MethodError(
                f"{self.granularity.text} has one sparsity: there is none to draw, leave draw out"
            )
        if not draw[0] <= self.sparsity <= draw[1]:
            raise MethodError(
                f"sparsity {self.sparsity} is not among those that are drawn, {draw[0]} to "
                f"{draw[1]}: the training ends at it, give one of these"
            )

    @property
    def target(self) -> float:
        """Final sparsity over all sites."""
        return self.sparsity

    def threshold(self, site: Site, weight: Tensor) -> Tensor:
        """The layer threshold ``θ_l``: 0-dimensional."""
        return torch.full((), INACTIVE, dtype=torch.float32, device=weight.device)

    def trial(self, site: Site, weight: Tensor) -> Tensor:
        """The mean magnitude."""
        return self.mean_magnitude(site, weight)

    def scale(self, site: Site) -> float:
        """``σ_l``: divides the site's magnitudes before the global quantile."""
        return 1.0

    def level_of(self, site: Site, level: Tensor, dtype: torch.dtype) -> Tensor:
        """``θ_l`` of a site from the global threshold ``T``, both fp32.

        It is ``T·σ_l``. Of groups, where that product or their scores are rounded, it is two units
        in the last place more, so that the group whose score is ``T`` does go: N of M would not be
        that without it.
        """
        scale = self.scale(site)
        own = level * scale
        rounded = scale != 1.0 or dtype == torch.float64
        return own * (1 + 2**-22) if rounded and self.granularity.grouping(site) else own

    def share_of_groups(self, sparsity: float) -> float:
        """The share of what can go that goes, for a sparsity of all weights."""
        return min(1.0, sparsity / self.granularity.most)

    def reached(self, sites: Sequence[Site], sparsity: float) -> float:
        """The sparsity that a sparsity amounts to: with N of M some weights can never go.

        Args:
            sites: All sites.
            sparsity: What was asked for; the result is a share of the same budget.
        """
        costs = [site.cost if self.budget == "macs" else 1 for site in sites]
        able = [self.granularity.prunable(site) for site in sites]
        whole = sum(cost * site.numel for cost, site in zip(costs, sites, strict=True))
        going = sum(cost * count for cost, count in zip(costs, able, strict=True))
        return self.share_of_groups(sparsity) * going / max(1, whole)


@dataclass(frozen=True)
class LearnedMethod(Method):
    """Thresholds are parameters that the optimizer trains; the sparsity follows from them.

    Raises:
        MethodError: For N of M.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity.most < 1:
            raise MethodError(
                f"{self.name} learns its thresholds, which may leave groups dense: "
                f"{self.granularity.text} needs a method with a schedule, such as st3"
            )

    @property
    def target(self) -> None:
        """No sparsity is set."""

    def level(self, threshold: Tensor) -> Tensor:
        """The magnitudes below which weights are pruned, from the parameter."""
        return threshold

    def threshold_decay(self, weight_decay: float) -> float:
        """Weight decay that the optimizer should give thresholds, from that of the weights."""
        return 0.0

    def penalty(self, threshold: Tensor) -> Tensor | None:
        """One site's part of what is added to the loss, or ``None``; a sum over thresholds.

        Of thresholds that are sharded it gets those that are here.
        """
        return None

    def after_step(self, weight: Tensor, threshold: nn.Parameter, site: Site) -> None:
        """Keep a site's thresholds in their range after an optimizer step; without gradient."""


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


def per_channel(site: Site, weight: Tensor, value: float) -> nn.Parameter:
    """A learned threshold for each output channel, of a shape that broadcasts over the channels.

    Returns:
        fp32, as many dimensions as :func:`st3fx.sparsity.formula.channel_view` gives.
    """
    view, others = channel_view(weight, site.layout)
    shape = [1 if dim in others else size for dim, size in enumerate(view.shape)]
    return nn.Parameter(torch.full(shape, value, dtype=torch.float32, device=weight.device))
