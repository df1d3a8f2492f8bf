"""Parameters and buffers of a graph by their dotted names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def attribute(module: nn.Module, target: str) -> Any:
    """What a dotted name stands for."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def assign(module: nn.Module, target: str, value: Tensor) -> None:
    """Give a parameter or buffer another value, of whatever shape; make a parameter if need be."""
    path, _, name = target.rpartition(".")
    owner = attribute(module, path) if path else module
    if name in owner._buffers:
        owner._buffers[name] = value
        return
    old = owner._parameters.get(name)
    trained = old is None or old.requires_grad
    owner.register_parameter(name, nn.Parameter(value, requires_grad=trained))


def free(module: nn.Module, target: str) -> str:
    """``target``, or with a number behind it where that is taken."""
    path, _, name = target.rpartition(".")
    owner = attribute(module, path) if path else module
    number, wanted = 1, name
    while hasattr(owner, wanted):
        number += 1
        wanted = f"{name}_{number}"
    return f"{path}.{wanted}" if path else wanted
