"""A method's formula applied to sites: in full precision, under the frozen mask.

Mathematics that the methods share, on tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from st3fx.plan.sites import Layout
from st3fx.sparsity import kernels
from st3fx.sparsity.drawing import is_drawn
from st3fx.sparsity.granularity import magnitudes
from st3fx.sparsity.ties import is_split, untied

INACTIVE = -1.0
"""Value of a layer threshold before the first update: the effective weight is the latent one."""


def smallest_threshold(dtype: torch.dtype) -> float:
    """The smallest active threshold: with it, no effective weight is denormal.

    Two floats of magnitude ≥ b differ by at least ``b·eps/2``; with ``b = 2·tiny/eps`` of the dtype
    computed in (fp32 for half precision) that is a normal number, about 2e-31 in fp32. It is never
    0, so that formulas may divide by it.
    """
    info = torch.finfo(torch.promote_types(dtype, torch.float32))
    return 2 * info.tiny / info.eps


def channel_view(weight: Tensor, layout: Layout) -> tuple[Tensor, tuple[int, ...]]:
    """``weight`` as a view whose output channels are whole dimensions, and the other dimensions.

    Args:
        weight: Any shape that ``layout`` describes.
        layout: Where the output channels lie.

    Returns:
        The view and the dimensions to reduce over for one value per output channel.
    """
    view = weight.unflatten(0, (layout.groups, -1)) if layout.groups > 1 else weight
    return view, tuple(dim for dim in range(view.dim()) if dim not in layout.channel_dims)


def above(weight: Tensor, threshold: Tensor, *grouping: Any) -> Tensor:
    """Which weights are left, compared in the precision that the formulas compute in.

    A 0-dimensional threshold would be rounded to half precision beside a weight of that dtype, and
    the mask would be another one than the forward's.

    Args:
        weight: Any floating dtype.
        threshold: Broadcasts with ``weight``.
        grouping: What is pruned together, see :func:`st3fx.sparsity.granularity.magnitudes`.
    """
    return magnitudes(weight, *grouping) > (threshold if threshold.dim() else threshold.reshape(1))


def is_inactive(threshold: Tensor) -> bool:
    """Whether a 0-dimensional threshold is known to be inactive without waiting for a device."""
    return threshold.device.type == "cpu" and threshold.item() < 0


def zero_up_to_(magnitude: Tensor, bound: Tensor) -> Tensor:
    """``magnitude`` where it is above ``bound``, else 0; in place. One pass on a CPU.

    Args:
        magnitude: Any shape, not negative.
        bound: 0-dimensional.
    """
    if bound.device.type == "cpu":
        return F.threshold(magnitude, bound.item(), 0.0, inplace=True)
    return magnitude.masked_fill_(magnitude <= bound, 0.0)


def soft(weight: Tensor, bound: Tensor, out: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """``sign(w)·max(|w| − bound, 0)`` into ``out``; zeros may be negative. One pass on a CPU.

    Args:
        weight: The weight.
        bound: 0-dimensional, or broadcasts with it; 0 leaves every weight as it is.
        out: Of its shape.
        magnitude: Of groups, in place of ``|w|``; the result is ``w·(1 − bound/‖g‖)₊``.
    """
    if magnitude is not None:
        kept = (magnitude - bound).clamp_min_(0.0)  # not 1 − bound/‖g‖, which may round to 0
        smallest = torch.finfo(kept.dtype).tiny  # where a bound of 0 meets a group of zeros
        kept.div_(magnitude.clamp_min(smallest)).mul_(weight)
        return torch.where(bound > 0, kept, weight, out=out)
    if bound.device.type == "cpu" and bound.numel() == 1:
        shrunk: Tensor = torch.ops.aten.softshrink.out(weight, bound.item(), out=out)
        return shrunk
    torch.clamp(weight, bound.neg(), bound, out=out)
    return torch.sub(weight, out, out=out)


def hard(weight: Tensor, bound: Tensor, out: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """``w`` where ``|w| > bound``, else a positive zero, into ``out``.

    Args:
        weight: The weight.
        bound: Broadcasts with it.
        out: Of its shape.
        magnitude: Of groups, in place of ``|w|``.
    """
    if magnitude is not None:
        return normal(torch.where(magnitude > bound, weight, 0.0), out)
    rows = kernels.rows(weight, bound, out)
    if rows is not None:
        kernels.hard_threshold(rows)
        return out
    return torch.mul(weight, weight.abs() > bound, out=out).add_(0.0)


def normal(weight: Tensor, out: Tensor) -> Tensor:
    """``weight`` into ``out``, its denormal numbers and negative zeros as positive zeros.

    In a group that is left a weight may be of any size; a fold has nothing to round.
    """
    smallest = torch.finfo(weight.dtype).tiny
    return torch.where(weight.abs() < smallest, weight.new_zeros(()), weight, out=out)


def active_bound(threshold: Tensor, smallest: float) -> Tensor:
    """A threshold at or above the smallest active one; negative (inactive) ones stay."""
    return torch.where(threshold < 0, threshold, threshold.clamp_min(smallest))


def has_dense_channels(weight: Tensor, layout: Layout) -> bool:
    """Whether output channels are the first dimension, one after another in memory, each dense."""
    if layout != Layout((0,)) or weight.numel() == 0:
        return False
    if weight.is_contiguous():
        return True
    channel = weight[:1]
    order = sorted(range(1, weight.dim()), key=weight.stride, reverse=True)
    dense = channel.permute(0, *order).is_contiguous()
    return dense and (len(weight) == 1 or weight.stride(0) == channel.numel())


@dataclass(frozen=True)
class Formula:
    """How a method makes effective weights: the whole contract of a formula and its gradient rule.

    The formula:

    * With an inactive threshold the effective weight is the latent one, bit for bit. Of a scheduled
      method every negative threshold is inactive (:data:`INACTIVE` is one); a learned one says
      itself where it is (STR: where its sigmoid is 0).
    * An active threshold is raised to ``smallest`` (:func:`active_bound`), so that no effective
      weight is denormal. A pruned weight is ``+0.0``, never ``-0.0``.
    * Equal inputs give equal bits, alone or among other sites. It draws no random numbers, and
      writes to ``out`` alone.
    * The frozen mask is none of its business: it is put on afterwards. Nor are ties: it is never
      given a threshold that splits one (:mod:`st3fx.sparsity.ties`), nor is the gradient rule.
    * ``*constants`` are what the method's ``constants(site)`` gives, then the groups if there are
      any (:data:`st3fx.sparsity.granularity.SCHEMA`); the schema that the operator is defined with
      names them in that order, with ``SCHEMA`` at the end.

    The gradient rule, ``gradient(grad, weight, threshold, *constants)``, gives the gradients of
    weight and threshold (``None`` for a threshold that is not learned); ``None`` in its place is
    straight through. It is given the latent weight as it is, in half precision too, and must agree
    with the formula on which weights are left: :func:`above` compares as formulas do. The gradient
    that it is given is 0 for weights that the frozen mask has pruned.

    Attributes:
        one: ``one(weight, threshold, smallest, out, *constants)`` writes a site's effective weight
            into ``out``. Weight, threshold and ``out`` are in fp32 at least; ``smallest`` is the
            smallest active threshold.
        many: Does as many sites at once as it can, but for masks, and gives back the others.
        own: How many of the constants are the method's own.
        learned: How many of these, the first ones, are tensors that the optimizer trains. Then the
            threshold is one of the first of them; ``one`` and the gradient rule are given one
            with which a mask is drawn (:mod:`st3fx.sparsity.drawing`) as it is; the rule has a
            gradient of each at its end.
        by_channel: Whether an effective weight depends on others of its output channel. Then the
            first two constants are the layout of the channels.
    """

    one: Callable[..., None]
    many: Callable[[Sequence[Job]], list[Job]] | None = None
    own: int = 0
    learned: int = 0
    by_channel: bool = False

    def untied(
        self, weight: Tensor, threshold: Tensor, constants: tuple[Any, ...], first: int = 0
    ) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """Arguments of ``one`` and of the gradient rule, with a threshold that splits no tie."""
        grouping = constants[self.own :]
        if not self.learned:
            return *untied(weight, threshold, *grouping, first=first), constants
        learned, threshold = untied(constants[0], threshold, *grouping, first=first)
        return weight, threshold, (learned, *constants[1:])


class Inputs(NamedTuple):
    """What the effective weight of one site is computed from.

    Attributes:
        formula: The method's.
        weight: The latent weight, any floating dtype.
        threshold: The site's threshold.
        mask: Empty, or of the weight's shape: the weights that are left once they are frozen.
        constants: The formula's other arguments.
        first: The place in the whole weight of the first that is here, where ``weight`` is some of
            its rows.
    """

    formula: Formula
    weight: Tensor
    threshold: Tensor
    mask: Tensor
    constants: tuple[Any, ...]
    first: int = 0

    def untied(self) -> Inputs:
        """With a weight and a threshold of no dimensions, where this one splits a tie."""
        if not is_split(self.threshold):
            return self
        found = self.formula.untied(self.weight, self.threshold, self.constants, self.first)
        return self._replace(weight=found[0], threshold=found[1], constants=found[2])

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """Those of the constants that the optimizer trains."""
        return self.constants[: self.formula.learned]

    def evaluate(self, out: Tensor) -> None:
        """Write the effective weight into ``out``, of the weight's shape and dtype."""
        evaluate([Job(self, out)])


class Job(NamedTuple):
    """An effective weight to be computed into ``out``, of the weight's shape and dtype."""

    inputs: Inputs
    out: Tensor


@torch.no_grad()
def evaluate(jobs: Sequence[Job]) -> None:
    """Compute the effective weights of sites; the same bits whether together or one by one."""
    jobs = [Job(job.inputs.untied(), job.out) for job in jobs]
    for formula in dict.fromkeys(job.inputs.formula for job in jobs):
        own = [job for job in jobs if job.inputs.formula == formula]
        for job in own if formula.many is None else formula.many(own):
            _evaluate_one(job)
    for job in jobs:
        if job.inputs.mask.numel():
            job.out.masked_fill_(~job.inputs.mask, 0.0)


def _evaluate_one(job: Job) -> None:
    formula, weight, threshold, _, constants, _ = job.inputs
    dtype = torch.promote_types(weight.dtype, torch.float32)
    result = job.out if job.out.dtype == dtype else torch.empty_like(weight, dtype=dtype)
    latent, level = weight.detach().to(dtype), threshold.detach()
    if not is_drawn(level):
        level = level.to(dtype)
    formula.one(latent, level, smallest_threshold(weight.dtype), result, *constants)
    if result is not job.out:
        # A small negative difference rounds to a negative zero in fp16.
        job.out.copy_(result).add_(0.0)
