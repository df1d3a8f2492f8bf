"""Hooks on modules: what runs before or after a forward, and which of it a graph may stand for.

transformers leaves a hook on every layer once a call has asked for hidden states or attention
weights. It does nothing unless a model above is collecting these. A graph of that model has what
its hooks do in it; and where nobody collects when a module is called, the hooks inside are idle.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

_RECORDING = "transformers.utils.output_capturing"


def has_hooks(module: nn.Module) -> bool:
    """Whether anything runs before or after the module's forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def has_backward_hooks(model: nn.Module) -> bool:
    """Whether anything of a user's runs in the backward pass, on a module or a parameter."""
    return any(m._backward_hooks or m._backward_pre_hooks for m in model.modules()) or any(
        parameter._backward_hooks or parameter._post_accumulate_grad_hooks
        for parameter in model.parameters()
    )


def has_other_hooks(module: nn.Module) -> bool:
    """Whether any of its hooks is not one of transformers' that record outputs."""
    others: tuple[Mapping[int, Any], ...] = (
        module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    )  # fmt: skip
    recorders = all(records_outputs(hook) for hook in module._forward_hooks.values())
    return not recorders or any(others)


def is_hooked(module: nn.Module) -> bool:
    """Whether a hook of the module does anything in a call that comes now."""
    return has_hooks(module) and (is_recording() or has_other_hooks(module))


def is_recording() -> bool:
    """Whether one of transformers' models collects what its layers give, just now."""
    recording = sys.modules.get(_RECORDING)
    collector = getattr(recording, "_active_collector", None)
    return collector is not None and bool(collector.get())


def records_outputs(hook: Any) -> bool:
    """Whether it is such a hook of transformers'."""
    return getattr(hook, "__module__", None) == _RECORDING
