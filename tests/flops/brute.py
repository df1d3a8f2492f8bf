"""Counting by doing: a convolution of ones with ones where its weight is not zero."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Model = TypeVar("Model", bound=nn.Module)


def prune(model: Model, share: float = 0.6, seed: int = 0) -> Model:
    """Set weights to zero at random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            kept = torch.rand(parameter.shape, generator=generator) >= share
            parameter.data = torch.where(kept, torch.ones(()), torch.zeros(()))
    return model.eval()


def ones(layer: _ConvNd, x: Tensor, weight: Tensor) -> int:
    """The sum of the layer's output for ones, with its own padding."""
    kept, bias = layer.weight, layer.bias
    try:
        layer.weight, layer.bias = nn.Parameter(weight), None
        with torch.no_grad():
            # Every output is a whole number below 2²⁴, so that float32 has it exactly.
            out: Tensor = type(layer).forward(layer, torch.ones_like(x))
    finally:
        layer.weight, layer.bias = kept, bias
    return int(out.double().sum().item())


def dense_and_sparse(layer: _ConvNd, x: Tensor) -> tuple[int, int]:
    """MACs with all taps and with those that are not zero."""
    weight = layer.weight.detach()
    mask = (weight != 0).to(weight.dtype)
    return ones(layer, x, torch.ones_like(weight)), ones(layer, x, mask)


def convolutions(
    model: nn.Module, x: Tensor
) -> tuple[dict[str, tuple[int, int]], dict[str, list[int]]]:
    """Name of the weight -> MACs, and shape of the input, of every convolution that runs."""
    found: dict[str, tuple[int, int]] = {}
    shapes: dict[str, list[int]] = {}
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, _ConvNd)
        dense, sparse = dense_and_sparse(layer, args[0])
        shapes[names[id(layer)]] = list(args[0].shape)
        before = found.get(names[id(layer)], (0, 0))
        found[names[id(layer)]] = (before[0] + dense, before[1] + sparse)

    layers = [module for module in model.modules() if isinstance(module, _ConvNd)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found, shapes
