"""Submodules that stay calls in the graph of the module above, and why."""

from __future__ import annotations

from torch import nn

from st3fx.core.hooks import has_hooks, has_other_hooks, is_recording
from st3fx.errors import TraceError

OWN_KERNELS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Layers that choose a fused kernel by what they are given and whether gradients are wanted: in the
graph of another module they stay calls, which choose each time."""


def reason_to_call(module: nn.Module) -> str | None:
    """Why a submodule with sites is not even tried."""
    if has_other_hooks(module):
        return "has hooks"
    if isinstance(module, OWN_KERNELS):
        return f"{type(module).__name__} chooses its kernel by what it is given"
    return None


def require_idle_recorders(name: str, called: nn.Module) -> None:
    """Refuse a call whose hooks would give the model above something: its graph is without hooks.

    Raises:
        TraceError: With the module.
    """
    if is_recording() and any(has_hooks(inner) for inner in called.modules()):
        raise TraceError(f"collects what {name} gives, which stays a call")
