"""An exponential moving average of the latent weights, thresholded like the model itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from st3fx.core.copying import copied
from st3fx.sparsifier import Sparsifier


class Average:
    """A copy of a converted model whose latent weights and statistics are averages over steps.

    What is averaged are latent weights, never effective ones: an average of masks that differ would
    be dense. The thresholds follow from the averaged weights, at the sparsity of the step.

    Attributes:
        model: The copy. Before it is used, :meth:`threshold` must have been called.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the present weights of ``model``."""
        self.model = copied(model).requires_grad_(False).eval()
        self._source = model
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, 1 for the first.

        The decay is smaller at first, ``(1 + t) / (10 + t)``, so that the random weights of the
        start are soon forgotten.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, values = [], []
        for average, value in zip(_tensors(self.model), _tensors(self._source), strict=True):
            if value.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:  # counters: the step, batches that batch norm has seen
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def threshold(self) -> Sparsifier:
        """Set the thresholds for the averaged weights; the copy's sparsifier."""
        sparsifier = Sparsifier(self.model)
        sparsifier.refresh()
        return sparsifier


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
