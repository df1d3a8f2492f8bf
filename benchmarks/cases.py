"""torchvision's models with random weights, for all benchmarks."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn


def build(name: str, **options: Any) -> nn.Module:
    """A model with random weights, built without a download.

    Args:
        name: As torchvision lists it.
        options: For its builder.
    """
    if name.removeprefix("quantized_") in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # theirs takes minutes
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model
