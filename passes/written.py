"""Parameters that a forward writes to, and how a trial run leaves them as they were.

Operators in place are seen by the dispatcher. ``weight.data = ...`` and writes through NumPy are
not: these show in the memory that a parameter has, and in its values, after the run.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.core.kinds import Saved


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an ATen operator writes to."""
    if not func._schema.is_mutable:
        return []
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            found += given if isinstance(given, list | tuple) else [given]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


class Kept:
    """Parameters of a model as they are now: their memory, their values, their places."""

    def __init__(
        self, model: nn.Module, source: Mapping[str, Tensor], names: Container[str] | None = None
    ) -> None:
        """Before a run.

        Args:
            model: Its parameters are looked at.
            source: Full name -> a tensor that has the same values, and keeps them.
            names: Which parameters; all by default.
        """
        chosen = {
            id(parameter): name
            for name, parameter in model.named_parameters()
            if name in source and (names is None or name in names)
        }
        self._saved: dict[str, Saved] = {}
        self._places: list[tuple[dict[str, Any], str, Tensor, str]] = []
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its tables are no dicts
            for key, parameter in module._parameters.items():
                name = chosen.get(id(parameter))
                if parameter is not None and name is not None:
                    self._places.append((module._parameters, key, parameter, name))
                    if name not in self._saved:
                        self._saved[name] = Saved(parameter, source[name])

    def set_back(self) -> list[str]:
        """Undo what has changed; the names of what was replaced, moved, or has other values."""
        found = {}
        for name, saved in self._saved.items():
            if saved.changed:
                found[name] = None
                saved.restore()
        for table, key, parameter, name in self._places:
            if table.get(key) is not parameter:
                found[name] = None
                table[key] = parameter
        return list(found)
