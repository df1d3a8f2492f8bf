"""Several optimizers, each over parameters of its own, as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class Together(Optimizer):
    """Steps several optimizers at once, with one list of groups and one state.

    Everything that reads, scales, saves or shards an optimizer then sees one.

    Args:
        parts: The optimizers, fresh; their groups are this one's, in order.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = list(parts)
        self._counts = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each.

        Args:
            closure: Computes the loss and its gradients anew, once for all.

        Returns:
            What the closure gave.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        begin = 0
        for part, count in zip(self._parts, self._counts, strict=True):
            # Loading a state dict makes new ones of both.
            part.param_groups = self.param_groups[begin : begin + count]
            part.state = self.state
            part.step()
            begin += count
        return loss
