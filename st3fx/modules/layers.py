"""Layers of torch.nn: those whose weights multiply, and the plain one that a layer is a kind of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from st3fx.errors import TraceError
from st3fx.plan.names import owner
from st3fx.plan.sites import SkippedSite

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


_TEMPLATES: dict[type[nn.Module], tuple[Any, ...]] = {
    nn.Conv1d: (1, 1, 1),
    nn.Conv2d: (1, 1, 1),
    nn.Conv3d: (1, 1, 1),
    nn.ConvTranspose1d: (1, 1, 1),
    nn.ConvTranspose2d: (1, 1, 1),
    nn.ConvTranspose3d: (1, 1, 1),
    nn.Linear: (1, 1),
}


def plain_layer(module: nn.Module, weight: Tensor) -> nn.Module:
    """A plain layer with the settings and the bias of ``module`` and the given weight.

    Args:
        module: An instance of a subclass of a convolution or linear layer.
        weight: Becomes the new layer's parameter, without a copy.

    Raises:
        TraceError: If ``module`` is no such layer.
    """
    for kind, arguments in _TEMPLATES.items():
        if isinstance(module, kind):
            layer: nn.Module = kind(*arguments, device="meta")
            break
    else:
        raise TraceError(
            f"fold could put no plain layer in place of {type(module).__name__}; derived from "
            "nn.Linear or a convolution of torch.nn it could be sparse"
        )
    for name in layer.__dict__:
        if name not in ("_parameters", "_buffers", "_modules"):
            layer.__dict__[name] = module.__dict__[name]
    layer._parameters["weight"] = nn.Parameter(weight.detach())
    layer._parameters["bias"] = module._parameters.get("bias")
    return layer
