"""Frozen masks: buffers that are empty until the sparsity is frozen, and then part of the state.

An empty mask is in no state dict, so that a model that was never frozen has no keys for it. A hook
on the model makes room for the masks of a checkpoint that has them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SUFFIX = "_mask"
_PREFIX = "st3fx_"


def put_mask(module: nn.Module, name: str, mask: Tensor) -> None:
    """Make ``mask`` a buffer: persistent, unless it is empty."""
    module.register_buffer(name, mask, persistent=mask.numel() > 0)


def watch_loading(model: nn.Module) -> None:
    """Let ``model`` load checkpoints from before and after a freeze."""
    model.register_load_state_dict_pre_hook(_make_room)


def unwatch_loading(model: nn.Module) -> None:
    """Take the hook off again, from ``model`` and all modules in it."""
    for module in model.modules():
        hooks = module.__dict__.get("_load_state_dict_pre_hooks", {})
        for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
            del hooks[key]


def _is_ours(hook: Any) -> bool:
    return getattr(hook, "hook", hook) is _make_room


def _make_room(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any, **__: Any) -> None:
    """Give each mask the shape that it has in ``state``."""
    if not any(_PREFIX in key for key in state):
        return  # the user's own weights: they say nothing about masks
    for path, module in model.named_modules():
        for name, present in list(module._buffers.items()):
            if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)) or present is None:
                continue
            given = state.get(prefix + (f"{path}.{name}" if path else name))
            shape = given.shape if isinstance(given, Tensor) else (0,)
            if present.shape != shape:
                put_mask(module, name, torch.ones(shape, dtype=torch.bool, device=present.device))
