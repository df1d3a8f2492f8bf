"""A method's formula applied to one site: in full precision, under the frozen mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from st3fx.functional import smallest_threshold

Formula: TypeAlias = Callable[..., None]
"""``formula(weight, threshold, smallest, out, *constants)`` writes effective weights into ``out``.

Weight, threshold and ``out`` are in fp32 at least; ``smallest`` is the smallest active threshold.
"""


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

    @torch.no_grad()
    def evaluate(self, out: Tensor) -> None:
        """Write the effective weight into ``out``, of the weight's shape and dtype."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        result = out if out.dtype == dtype else torch.empty_like(self.weight, dtype=dtype)
        latent, level = self.weight.detach().to(dtype), self.threshold.detach().to(dtype)
        self.formula(latent, level, smallest_threshold(self.weight.dtype), result, *self.constants)
        if self.mask.numel():
            result.masked_fill_(~self.mask, 0.0)
        if result is not out:
            # A small negative difference rounds to a negative zero in fp16.
            out.copy_(result).add_(0.0)
