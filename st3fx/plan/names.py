"""Full names of modules and parameters: which is below which, and what one means."""

from __future__ import annotations

from torch import nn


def is_below(name: str, ancestor: str) -> bool:
    """Whether ``name`` is ``ancestor`` or inside it; the empty name is the model."""
    return not ancestor or name == ancestor or name.startswith(ancestor + ".")


def relative(name: str, ancestor: str) -> str:
    """``name`` as seen from ``ancestor``, which it is below."""
    return name[len(ancestor) :].removeprefix(".") if ancestor else name


def owner(name: str) -> str:
    """Full name of the module that has the parameter ``name``."""
    return name.rpartition(".")[0]


def ancestors(name: str) -> set[str]:
    """``name`` and every module above it."""
    parts = name.split(".") if name else []
    return {".".join(parts[:count]) for count in range(len(parts) + 1)}


def submodule(model: nn.Module, name: str) -> nn.Module:
    """Like ``get_submodule``, which a ScriptModule refuses."""
    found: nn.Module = model
    for part in name.split(".") if name else ():
        found = getattr(found, part)
    return found
