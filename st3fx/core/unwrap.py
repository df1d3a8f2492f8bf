"""The model inside of torch's own wrappers."""

from __future__ import annotations

import sys

from torch import nn

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
