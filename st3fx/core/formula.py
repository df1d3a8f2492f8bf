"""A method's formula applied to sites: in full precision, under the frozen mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from st3fx.core.functional import smallest_threshold


@dataclass(frozen=True)
class Formula:
    """How a method makes effective weights.

    Attributes:
        one: ``one(weight, threshold, smallest, out, *constants)`` writes a site's effective weight
            into ``out``. Weight, threshold and ``out`` are in fp32 at least; ``smallest`` is the
            smallest active threshold.
        many: Does as many sites at once as it can, but for masks, and gives back the others.
    """

    one: Callable[..., None]
    many: Callable[[Sequence[Job]], list[Job]] | None = None


class Inputs(NamedTuple):
    """What the effective weight of one site is computed from.

    Attributes:
        formula: The method's.
        weight: The latent weight, any floating dtype.
        threshold: The site's threshold.
        mask: Empty, or of the weight's shape: the weights that are left once they are frozen.
        constants: The formula's other arguments.
    """

    formula: Formula
    weight: Tensor
    threshold: Tensor
    mask: Tensor
    constants: tuple[Any, ...]

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
    for formula in dict.fromkeys(job.inputs.formula for job in jobs):
        own = [job for job in jobs if job.inputs.formula == formula]
        for job in own if formula.many is None else formula.many(own):
            _evaluate_one(job)
    for job in jobs:
        if job.inputs.mask.numel():
            job.out.masked_fill_(~job.inputs.mask, 0.0)


def _evaluate_one(job: Job) -> None:
    formula, weight, threshold, _, constants = job.inputs
    dtype = torch.promote_types(weight.dtype, torch.float32)
    result = job.out if job.out.dtype == dtype else torch.empty_like(weight, dtype=dtype)
    latent, level = weight.detach().to(dtype), threshold.detach().to(dtype)
    formula.one(latent, level, smallest_threshold(weight.dtype), result, *constants)
    if result is not job.out:
        # A small negative difference rounds to a negative zero in fp16.
        job.out.copy_(result).add_(0.0)
