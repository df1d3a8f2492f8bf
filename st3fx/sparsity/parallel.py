"""Operators on weights that are split over processes as they compute (tensor parallelism).

A part computes what belongs to it alone: a weight's own comparison, or that of whole output
channels. Where something else is asked for (a norm over a channel, or groups, that lie in several
parts; a threshold that is learned, or splits equal magnitudes by their place), the weight is
gathered for the one computation and its part is kept: the bits are those of one process, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from st3fx.sparsity.formula import Formula
from st3fx.sparsity.shards import like, local_part, spread_of


def applied(op: Callable[..., Tensor], formula: Formula, args: Sequence[Any]) -> Tensor:
    """The effective weight of a DTensor, split as the weight is; gradients reach its part.

    Args:
        op: The operator.
        formula: What it computes.
        args: Its arguments; the mask, if there is one, is plain and of the whole shape.

    Raises:
        StateError: For a weight whose parts are yet to be summed.
    """
    weight, threshold, mask, *constants = args
    if not isinstance(weight, DTensor):
        return op(*map(_gathered, args))
    is_split = bool(spread_of(weight).dims)
    if is_split and not _is_local(formula, weight, threshold, constants):
        whole = op(*map(_gathered, args))
        copies = [Replicate()] * weight.device_mesh.ndim
        found = DTensor.from_local(whole, weight.device_mesh, copies, run_check=False)
        result: Tensor = found.redistribute(placements=weight.placements)
        return result
    own = local_part(mask, weight) if mask.numel() else mask
    part = op(weight.to_local(), _gathered(threshold), own, *map(_gathered, constants))
    return like(weight, part)


def _gathered(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _is_local(
    formula: Formula, weight: DTensor, threshold: Tensor, constants: Sequence[Any]
) -> bool:
    """Whether each process can compute its part; the same answer in all of them."""
    if formula.learned or isinstance(threshold, nn.Parameter | DTensor) or threshold.dim():
        return False
    if len(constants) > formula.own:  # there are groups
        return False
    if not formula.by_channel:
        return True
    split = {getattr(p, "dim", None) for p in weight.placements if not p.is_replicate()}
    channels, groups, *_ = constants
    return split == {0} and list(channels) == [0] and groups == 1
