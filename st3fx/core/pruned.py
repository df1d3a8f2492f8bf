"""Models that torch.nn.utils.prune has pruned: weights and masks, multiplied before each call."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import prune


def masked(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The modules that multiply a parameter with a mask before each call, and its short name."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                yield module, hook._tensor_name


def is_masked(model: nn.Module) -> bool:
    """Whether a model has such masks."""
    return next(masked(model), None) is not None


def make_permanent(model: nn.Module) -> nn.Module:
    """Multiply every mask into its parameter, in place, as ``prune.remove`` does.

    Where a mask is zero the parameter is ``+0.0`` afterwards, whatever its sign was.
    """
    for module, name in list(masked(model)):
        prune.remove(module, name)
        with torch.no_grad():
            getattr(module, name).add_(0.0)
    return model
