"""What a forward sets in its modules' attributes, and what its graph has to give for that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from st3fx.core.same import is_value
from st3fx.core.state import Attributes
from st3fx.errors import TraceError


class Stores:
    """Attributes of all modules of one traced module."""

    def __init__(self, root: nn.Module) -> None:
        """As they are before the trace."""
        self._root = root
        self._attributes = Attributes(root)
        self._stored: dict[str, Any] = {}

    def undo(self, below: str) -> None:
        """Set back what was stored below a module, whose trace has failed."""
        self._attributes.restore(below=below)

    def take_back(self) -> None:
        """Set everything back, and remember what was stored."""
        self._stored = {name: self._own(name) for name in self._attributes.changes()}
        self._attributes.restore()

    def given(self, written: list[str]) -> dict[str, Any]:
        """What the graph has to give: attribute -> proxies, in containers or not.

        Args:
            written: Attributes of other objects that the forward has set.

        Raises:
            TraceError: If something is stored that a graph cannot give.
        """
        stored = {
            name: value
            for name, value in self._stored.items()
            if not isinstance(value, torch.ScriptMethod)  # looked up for the first time
        }
        others = [name for name, value in stored.items() if not _is_made(value, self._own(name))]
        if others or written:
            raise TraceError(f"stores {', '.join([*others, *written][:3])} while it runs")
        return stored

    def _own(self, name: str) -> Any:
        """What lies in a plain attribute, ``None`` if there is none."""
        path, _, key = name.rpartition(".")
        return self._root.get_submodule(path).__dict__.get(key)


def _is_made(stored: Any, before: Any) -> bool:
    """Whether a forward has computed what it stores: a tensor, a size, or a new container."""
    leaves = pytree.tree_leaves(stored)
    made = [isinstance(leaf, fx.Proxy) for leaf in leaves]
    plain = all(m or leaf is None or is_value(leaf) for m, leaf in zip(made, leaves, strict=True))
    return stored is not before and any(made) and plain


def tensor_names(root: nn.Module) -> dict[int, str]:
    """The names of all tensors on the modules of ``root``: parameters and buffers come first."""
    names = {id(tensor): path for path, tensor in [*root.named_buffers(), *root.named_parameters()]}
    for path, module in root.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, Tensor):
                names.setdefault(id(value), f"{path}.{key}" if path else key)
    return names
