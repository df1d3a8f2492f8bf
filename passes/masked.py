"""Weights that ``torch.nn.utils.prune`` masks: its hooks multiply them with a mask in each call."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.utils.prune import BasePruningMethod

from st3fx.core.selection import Selection
from st3fx.core.sites import Layout, Site
from st3fx.errors import PlanError


def masked(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Full name of the parameter that a mask is put on -> name of the module, and of its weight."""
    return {
        f"{path}.{hook._tensor_name}_orig" if path else f"{hook._tensor_name}_orig": (
            path,
            hook._tensor_name,
        )
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, BasePruningMethod)
    }


def require_unmasked(
    model: nn.Module, multiplying: Mapping[str, str], selection: Selection
) -> dict[str, str]:
    """Why masked weights that the user leaves out stay dense, by name.

    Args:
        model: Whose hooks are looked at.
        multiplying: Parameters that multiply -> operator.
        selection: What the user wants sparse.

    Raises:
        PlanError: If one of them should become sparse: a threshold beside a mask makes no sense.
    """
    reasons = {}
    for name, (path, weight) in masked(model).items():
        if name not in multiplying:
            continue
        full = f"{path}.{weight}" if path else weight
        shape = tuple(model.get_parameter(name).shape)
        op = multiplying[name]
        site = Site(full, (name,), shape, op, Layout(), (path,), aliases=(name,))
        if len(shape) > 1 and selection.wants(site, model):
            raise PlanError(
                f"{full} {shape} is pruned by torch.nn.utils.prune, whose hook masks it in each "
                f"call: make that permanent before, torch.nn.utils.prune.remove(module, {weight!r})"
            )
        reasons[name] = "masked by torch.nn.utils.prune, and left out by include= or exclude="
    return reasons
