"""Sums of loss and right answers over the steps since the last row, read only at a row."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Running:
    """Sums that stay on the device, so that no step waits for them."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Begin at 0."""
        self._accelerator = accelerator
        self._sums = torch.zeros(2, device=accelerator.device)  # loss, right ones
        self.samples = 0

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Take in one batch of this process."""
        count = targets.shape[0]
        labels = targets if targets.dtype == torch.int64 else targets.argmax(1)
        right = (logits.argmax(1) == labels).sum() * (count / max(1, labels.numel()))
        self._sums += torch.stack([loss.detach().float() * count, right])
        self.samples += count

    def read(self) -> tuple[float, float]:
        """Mean loss and share of right ones, over all processes; begins at 0 again."""
        sums = torch.cat([self._sums, torch.tensor([self.samples], device=self._sums.device)])
        loss, right, samples = self._accelerator.reduce(sums, "sum").tolist()
        self._sums.zero_()
        self.samples = 0
        return (loss / samples, right / samples) if samples else (0.0, 0.0)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sums": self._sums.clone(), "samples": self.samples}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self._sums.copy_(state["sums"])
        self.samples = state["samples"]
