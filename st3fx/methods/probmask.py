r"""ProbMask: a probability for each weight under one budget (Zhou et al., arXiv 2105.01571).

Symbols: ``s`` the probability that a weight is left, ``l = log(u/(1 − u))`` the difference of two
Gumbel variables (``u`` uniform), ``τ`` the temperature, ``K`` the weights that the budget leaves.

    m̃ = sigmoid((log(s/(1 − s)) + l) / τ),   ŵ = w · m̃                  in training
    ∂L/∂w = ∂L/∂ŵ · m̃,   ∂L/∂s = ∂L/∂ŵ · w · m̃ (1 − m̃) / (τ s (1 − s))
    after each step of the optimizer   s ← min(1, max(0, s − v)),   Σ s ≤ K
    m = the K largest s,   ŵ = w · m                                    in eval mode, and folded

``s`` begins at 1, ``τ`` falls linearly from 1 to 0.03 over the run, and ``K`` follows the schedule.
That is the paper's Gumbel softmax and its projection, not compared with its text line by line. With
``hard`` a mask in training is ``m̃ ≥ ½`` and ``∂L/∂s`` that of ``m̃``, straight through. ``s``
are parameters that an optimizer trains. It must be one that scales each gradient, such as Adam:
those of ``s`` are as small as the weights, and SGD hardly moves them. The method's public settings
(args.py and main.py of x-zho14/ProbMask-official) have Adam at 0.006 without weight decay for ``s``
and SGD at 0.1 for the weights, and end with 20 epochs beside 300 in which the mask is fixed and the
weights are trained on, as in the last sixteenth of the run here.

Departures: there two masks are drawn for each step, and the one that is fixed is the best of ten on
the training set; here it is one, and the ``K`` largest ``s``. In eval mode nothing is drawn, and
the mask has exactly ``K`` weights or groups, equal ``s`` split by place, where the paper relies on
``s`` ending near 0 and 1; until the budget begins to fall the model is dense, and ``s`` stays at 1;
gradients near 0 and 1 are those at ``10⁻⁶`` from there, where they would be infinite; a group of
weights has one ``s``, which each of its weights counts, and all draw one number. Of a frozen model
nothing is drawn any more, and ``s`` rests.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from st3fx.errors import MethodError
from st3fx.methods.base import DrawnMethod
from st3fx.plan.sites import Site
from st3fx.sparsity import ops
from st3fx.sparsity.drawing import is_drawn, logistic_noise
from st3fx.sparsity.formula import Formula, is_inactive, normal
from st3fx.sparsity.granularity import SCHEMA, group_means, magnitudes

_NEAREST = 1e-6
"""How near ``s`` is to 0 or 1 at most for its gradient."""


class Draw(NamedTuple):
    """The draw of one site's mask.

    Attributes:
        noise: ``l`` for each weight, fp32.
        temperature: ``τ``.
        grouping: What is drawn together.
    """

    noise: Tensor
    temperature: Tensor
    grouping: tuple[Any, ...]

    @classmethod
    def of(cls, threshold: Tensor, salt: int, weight: Tensor, grouping: tuple[Any, ...]) -> Draw:
        """That of a threshold ``(θ, v, p, n, τ)``, for a whole weight."""
        number, shape = threshold[3].long(), tuple(weight.shape)
        noise = logistic_noise(shape, number, salt, weight.device, *grouping)
        return cls(noise, threshold[4].float(), grouping)

    def logits(self, probability: Tensor) -> Tensor:
        """``(log(s/(1 − s)) + l) / τ``, infinite where ``s`` is 0 or 1; of a group its mean."""
        own = group_means(probability, *self.grouping).clamp(0.0, 1.0)  # an optimizer's may be off
        return torch.logit(own).add_(self.noise).div_(self.temperature)


def formula(
    weight: Tensor,
    threshold: Tensor,
    smallest: float,
    out: Tensor,
    probability: Tensor,
    salt: int,
    hard: bool,
    *grouping: Any,
) -> None:
    """``ŵ``; a negative ``θ`` is inactive: ``ŵ = w``, bit for bit."""
    if is_drawn(threshold):
        logits = Draw.of(threshold, salt, weight, grouping).logits(probability.float())
        normal(weight * ((logits >= 0) if hard else logits.sigmoid_()), out)
    elif is_inactive(threshold):
        out.copy_(weight)
    else:
        left = magnitudes(probability.float(), *grouping) > threshold.clamp_min(smallest)
        normal(torch.where(left, weight, 0.0), out)
        if threshold.device.type != "cpu":
            torch.where(threshold < 0, weight, out, out=out)


def gradient(
    grad: Tensor,
    weight: Tensor,
    threshold: Tensor,
    probability: Tensor,
    salt: int,
    hard: bool,
    *grouping: Any,
) -> tuple[Tensor, None, Tensor]:
    """With respect to weight and ``s``; ``s`` gets none where nothing is drawn."""
    if not is_drawn(threshold):
        left = magnitudes(probability.float(), *grouping) > threshold
        return grad * (left | (threshold < 0)), None, torch.zeros_like(probability)
    draw = Draw.of(threshold, salt, weight, grouping)
    logits = draw.logits(probability.float())
    mask = (logits >= 0) if hard else logits.sigmoid()
    near = probability.float().clamp(_NEAREST, 1 - _NEAREST)
    logits, own = draw.logits(near), group_means(near, *grouping)
    # 1 − m̃ of an m̃ near 1 has few digits left.
    slope = logits.sigmoid() * logits.neg().sigmoid() / (draw.temperature * own * (1 - own))
    along = group_means(grad.float() * weight.float(), *grouping)
    return (grad * mask).to(grad.dtype), None, (along * slope).to(probability.dtype)


OPERATOR = ops.define(
    "drawn_mask",
    f"Tensor probability, int salt, bool hard, {SCHEMA}",
    Formula(formula, own=3, learned=1),
    gradient,
)


@dataclass(frozen=True)
class ProbMask(DrawnMethod):
    """Masks drawn by learned probabilities; train it with Adam or AdamW.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1.
        hard: Whether masks in training are zeros and ones, straight through.
        coldest: The temperature at the end, above 0 and at most 1.
        fixed: The share of the run, 0 to below 1, at whose end the mask is fixed
            (:meth:`st3fx.Sparsifier.freeze`) and only weights are trained; never before the
            schedule has reached its end.
        seed: Of the draws.
        schedule: The sparsity over training.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.
        granularity: What is pruned together; not N of M.

    Raises:
        MethodError: For values outside these.
    """

    hard: bool = False
    coldest: float = 0.03
    fixed: float = 0.0625
    seed: int = 0

    name: ClassVar[str] = "probmask"
    operator: ClassVar[ops.Operator] = OPERATOR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.coldest <= 1.0:
            raise MethodError(
                f"ProbMask(coldest={self.coldest}): give a temperature above 0, at most 1"
            )
        if not 0.0 <= self.fixed < 1.0:
            raise MethodError(
                f"ProbMask(fixed={self.fixed}): give a share of the run, 0 to below 1"
            )

    def constants(self, site: Site) -> tuple[Any, ...]:
        """The site's salt, and ``hard``."""
        return (zlib.crc32(f"{self.seed}:{site.name}".encode()), self.hard)

    def temperature(self, step: int, total_steps: int | None) -> float:
        """``τ``."""
        if total_steps is None:
            return self.coldest
        return 1 - (1 - self.coldest) * min(1.0, step / total_steps)

    def is_fixed(self, step: int, total_steps: int) -> bool:
        """Whether the last share of the run has begun."""
        begin = max(1 - self.fixed, self.schedule.end) * total_steps
        return begin <= step < total_steps
