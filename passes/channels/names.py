"""Parameters and buffers of a graph by their dotted names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn


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


def strip(module: fx.GraphModule) -> None:
    """Remove parameters, buffers and modules that the graph does not read."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for prefix, owner in module.named_modules():
        for table in (owner._parameters, owner._buffers):
            for name in [n for n in table if (f"{prefix}.{n}" if prefix else n) not in used]:
                del table[name]
    paths = {path for name in used for path in _above(name)}
    for prefix, owner in list(module.named_modules()):
        for name in list(owner._modules):
            if (f"{prefix}.{name}" if prefix else name) not in paths:
                del owner._modules[name]


def _above(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
