"""What a sparsification method must provide: one operator between a weight and its uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    keeps: ClassVar[bool] = False
    """Whether what a step has pruned stays pruned, whatever its weight becomes."""
    learned: ClassVar[tuple[str, ...]] = ()
    """Further tensors of a site, which the optimizer trains: arguments of the operator after the
    mask, and the leading constants of its formula."""

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

    def require(self, sites: Sequence[Site]) -> None:
        """Refuse sites that this method cannot make sparse, before anything is converted.

        Raises:
            MethodError: Naming one.
        """

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

    def period(self, step: int, total_steps: int) -> range:
        """The steps over which the schedule of the learning rate runs once: all of them.

        Args:
            step: One of these, 0 for the first.
            total_steps: Of the whole training.
        """
        return range(total_steps)

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
class TargetMethod(Method):
    """One sparsity over all sites, which the training ends with.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1; by default 0.9, of N of M the one
            that it has, and where each step draws its own, the largest of these.
        budget: What the sparsity is a share of: ``"weights"`` counts each weight once, ``"macs"``
            as often as it multiplies in the example, so that the share of multiplications left is
            1 − sparsity.
        sparsity_of: Globs over the sites' names with targets of their own, as a dict or as pairs;
            the sparsity stays the share over all sites (:mod:`st3fx.methods.targets`).

    Raises:
        MethodError: For values outside these.
    """

    sparsity: float = _DEFAULT
    budget: Literal["weights", "macs"] = field(default="weights", kw_only=True)
    sparsity_of: Mapping[str, float] | Sequence[tuple[str, float]] = field(default=(), kw_only=True)

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
        object.__setattr__(self, "sparsity_of", pairs_of(self.sparsity_of))
        if self.sparsity_of and most < 1:
            raise MethodError(
                f"{self.granularity.text} has the same sparsity everywhere: leave sparsity_of out"
            )
        self._check_draw()

    @property
    def own_targets(self) -> tuple[tuple[str, float], ...]:
        """Globs with targets of their own, in order."""
        return pairs_of(self.sparsity_of)

    @property
    def _draw(self) -> tuple[float, float] | None:
        """Between which sparsities that of each step is drawn, if it is."""
        return None

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

    def at(
        self, step: int, total_steps: int, floor: float = 0.0, target: float | None = None
    ) -> float:
        """The sparsity after a step.

        Args:
            step: Optimizer steps so far.
            total_steps: Of the whole training.
            floor: Share of zeros that the model came with.
            target: The final sparsity, where it is another than the method's.
        """
        raise NotImplementedError

    def is_last(self, step: int, total_steps: int) -> bool:
        """Whether the sparsity that a step has, if it is the target, stays to the end.

        A schedule does not fall: by default it does.

        Args:
            step: Optimizer steps so far.
            total_steps: Of the whole training.
        """
        return True

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
class ScheduledMethod(TargetMethod):
    """One global threshold for a sparsity that follows a schedule.

    Attributes:
        schedule: The sparsity over training.

    Raises:
        MethodError: For values outside their ranges.
    """

    schedule: CubicSchedule = field(default_factory=CubicSchedule, kw_only=True)

    @property
    def _draw(self) -> tuple[float, float] | None:
        # A file may have anything here, which is refused by its type, later.
        schedule: Any = self.schedule
        return schedule.draw if isinstance(schedule, CubicSchedule) else None

    def at(
        self, step: int, total_steps: int, floor: float = 0.0, target: float | None = None
    ) -> float:
        """The sparsity after a step.

        From the share ``f`` of zeros that the model came with the schedule's ramp ``r(t)``, 0 to 1,
        leads to the target ``s``: ``f + (s − f)·r(t)``, and never down.

        Args:
            step: Optimizer steps so far.
            total_steps: Of the whole training.
            floor: ``f``.
            target: ``s``, where it is another than the method's.
        """
        target = self.sparsity if target is None else target
        if not floor:
            return self.schedule.sparsity(step, total_steps, target)
        ramp = self.schedule.sparsity(step, total_steps, 1.0)
        return floor + max(0.0, target - floor) * ramp


@dataclass(frozen=True)
class DrawnMethod(ScheduledMethod):
    """Masks are drawn in training, by a probability for each weight that the optimizer trains.

    The global threshold is one of probabilities: in eval mode, and folded, as many of the most
    probable weights or groups are left as the sparsity says. After each step the probabilities are
    projected onto that budget, and the next mask is drawn.

    Raises:
        MethodError: For N of M.
    """

    learned: ClassVar[tuple[str, ...]] = ("probability",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity.most < 1:
            raise MethodError(
                f"{self.name} draws each group by itself, which may leave groups dense: "
                f"{self.granularity.text} needs another method with a schedule, such as st3"
            )
        if self._draw is not None:
            raise MethodError(
                f"{self.name} draws masks within one budget: leave draw= or --draw-sparsity out"
            )
        if self.sparsity_of:
            raise MethodError(
                f"{self.name} draws masks within one budget: leave sparsity_of= or --sparsity-of "
                "out"
            )

    def temperature(self, step: int, total_steps: int | None) -> float:
        """Of the draw after a step; small ones give masks near 0 and 1.

        Args:
            step: Optimizer steps so far.
            total_steps: Of the whole training; ``None`` if it is not known.
        """
        raise NotImplementedError

    def is_fixed(self, step: int, total_steps: int) -> bool:
        """Whether nothing is drawn any more: the mask that a step has is the last one.

        Args:
            step: Optimizer steps so far.
            total_steps: Of the whole training.
        """
        return False

    def trial(self, site: Site, weight: Tensor) -> Tensor:
        """All are as probable at conversion: a threshold that splits them, by place, in half."""
        return torch.tensor([0.5, 1.0, 2.0**31], dtype=torch.float64, device=weight.device)

    def state(self, site: Site, weight: Tensor) -> dict[str, Tensor]:
        """With a probability for each weight, fp32, of its shape: 1."""
        probability = torch.ones(weight.shape, dtype=torch.float32, device=weight.device)
        return super().state(site, weight) | {"probability": nn.Parameter(probability)}


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


def pairs_of(given: object) -> tuple[tuple[str, float], ...]:
    """Globs with their targets, as a method has them.

    Args:
        given: A dict, or pairs.

    Raises:
        MethodError: For anything else, or a target outside [0, 1).
    """
    items = tuple(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(items, tuple | list):
        raise MethodError(f"sparsity_of = {given!r:.60}: give a dict of globs and sparsities")
    found: dict[str, float] = {}
    for item in items:
        pair = isinstance(item, tuple | list) and len(item) == 2
        glob, target = item if pair else ("", -1.0)
        number = isinstance(target, int | float) and not isinstance(target, bool)
        if not (isinstance(glob, str) and glob and number and 0 <= target < 1):
            raise MethodError(
                f"sparsity_of has {item!r:.60}: give a glob over the sites' names and a sparsity "
                "of 0 or more, below 1, for example 'layer4.*': 0.95"
            )
        found.pop(glob, None)  # the last counts
        found[glob] = float(target)
    return tuple(found.items())


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
