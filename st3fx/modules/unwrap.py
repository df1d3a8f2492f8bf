"""The model inside of torch's own wrappers, and without the masks of torch's own pruning.

Models that torch.nn.utils.prune has pruned: weights and masks, multiplied before each call.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import prune

_WRAPPERS = (
    ("torch.nn.parallel.data_parallel", "DataParallel", "module"),
    ("torch.nn.parallel.distributed", "DistributedDataParallel", "module"),
    ("torch.optim.swa_utils", "AveragedModel", "module"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel", "module"),
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
)
"""Module, class, and its attribute with the model. A module that was never imported wraps nothing,
and some are slow to import."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that one of torch's wrappers, or several of them, are around.

    An attribute of the user's own that is called ``module`` is no wrapper.
    """
    while (name := _inside(model)) is not None:
        model = getattr(model, name)
    return model


def _inside(model: nn.Module) -> str | None:
    for module, cls, attribute in _WRAPPERS:
        kind = getattr(sys.modules.get(module), cls, None)
        if kind is not None and isinstance(model, kind):
            return attribute
    return None


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
