"""What a forward sets in its modules' attributes, and what its graph has to give for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from st3fx.core.same import is_value, same_value
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

    def given(self, ask: Callable[[fx.Node], Any], written: list[str]) -> dict[str, Any]:
        """What the graph has to give: attribute -> proxies, in containers or not.

        Args:
            ask: Gives the number or word that a node stands for, as a guard.
            written: Attributes of other objects that the forward has set.

        Raises:
            TraceError: If something is stored that a graph cannot give.
        """
        changed = {n: v for n, v in self._stored.items() if not self._was_there(n, v, ask)}
        given = {n: v for n, v in changed.items() if _is_made(v, self._own(n))}
        others = [*(n for n in changed if n not in given), *written]
        if others:
            raise TraceError(f"stores {', '.join(others[:3])} while it runs")
        return given

    def _was_there(self, name: str, stored: Any, ask: Callable[[fx.Node], Any]) -> bool:
        """Whether a call stores in an attribute what its last call has left there."""
        before = self._own(name)
        if isinstance(stored, torch.ScriptMethod):
            return True  # looked up for the first time
        if not isinstance(stored, fx.Proxy) or not is_value(before):
            return False
        return same_value(ask(stored.node), before)

    def _own(self, name: str) -> Any:
        """What lies in a plain attribute, ``None`` if there is none."""
        path, _, key = name.rpartition(".")
        return self._root.get_submodule(path).__dict__.get(key)


def _is_made(stored: Any, before: Any) -> bool:
    """Whether a forward has made what it stores: a tensor, or a new container of tensors."""
    leaves = pytree.tree_leaves(stored)
    made = [isinstance(leaf, fx.Proxy) for leaf in leaves]
    plain = all(m or leaf is None or is_value(leaf) for m, leaf in zip(made, leaves, strict=True))
    return stored is not before and any(made) and plain
