"""Layers of torch.nn whose weights multiply, and those of them that the example does not reach."""

from __future__ import annotations

from torch import nn

from st3fx.core.sites import SkippedSite
from st3fx.passes.names import owner

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase)

IDLE = "does not multiply in the example"
"""Why such a weight stays dense."""


def idle(model: nn.Module, observed: set[str]) -> list[SkippedSite]:
    """Weights of layers that the example does not reach: in a branch not taken, or left over."""
    owners = {name for name, module in model.named_modules() if isinstance(module, LAYERS)}
    return [
        SkippedSite(name, tuple(parameter.shape), "none", IDLE)
        for name, parameter in model.named_parameters()
        if owner(name) in owners and "weight" in name.rpartition(".")[2]
        if parameter.dim() > 1 and name not in observed
    ]
