"""Parameters that a forward writes to, and how a trial run leaves them as they were.

Operators in place are seen by the dispatcher. ``weight.data = ...`` and writes through NumPy are
not: these show in the memory that a parameter has, and in its values, after the run.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from st3fx.provenance import storage_of
from st3fx.sparsity.digest import Digest, digests
from st3fx.tensors import Saved, is_dense

ELSEWHERE = "?"
"""Stands for a writer that is no module's own forward: a hook, a library, a module above."""


class Moves:
    """Which modules give their own parameters other memory, as ``weight.data = ...`` does."""

    def __init__(self, model: nn.Module, moved: Callable[[str, Tensor], None]) -> None:
        """Before a run.

        Args:
            model: Whose parameters are looked at.
            moved: Is told which parameter has moved.
        """
        self.written: dict[str, set[str]] = {}
        self._moved = moved
        self._own: dict[nn.Module, list[tuple[str, str]]] = {}
        self._places: dict[str, tuple[int, ...]] = {}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its tables are no dicts
            table = module._parameters
            own = [(key, names[id(p)]) for key, p in table.items() if p is not None]
            if own:
                self._own[module] = own
                self._places |= {name: _place(table[key]) for key, name in own}

    def look(self, module: nn.Module, writer: str) -> None:
        """Note what has moved since the last look at the module's parameters.

        Args:
            module: Is about to run, or has run.
            writer: Whose doing it is.
        """
        for key, name in self._own.get(module, ()):
            parameter = module._parameters.get(key)
            place = _place(parameter)
            if place != self._places[name]:
                self._places[name] = place
                self.written.setdefault(name, set()).add(writer)
                if parameter is not None:
                    self._moved(name, parameter)

    def look_at_all(self) -> None:
        """After the run: what has moved where no module's call showed it."""
        for module in self._own:
            self.look(module, ELSEWHERE)


def _place(parameter: Tensor | None) -> tuple[int, ...]:
    """The parameter itself, and its memory."""
    if parameter is None:
        return ()
    storage = storage_of(parameter)
    place = () if storage is None else (storage._cdata, parameter.storage_offset())
    return (id(parameter), *place)


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
        self._digests = self._digested()

    def _digested(self) -> dict[str, Digest]:
        """A digest of each parameter's values, where it takes no time."""
        here = {
            name: saved.tensor
            for name, saved in self._saved.items()
            if is_dense(saved.tensor) and saved.tensor.device.type == "cpu"
            if not is_fake(saved.tensor)
        }
        return dict(zip(here, digests(list(here.values())), strict=True))

    def set_back(self) -> list[str]:
        """Undo what has changed; the names of what was replaced, moved, or has other values."""
        found: dict[str, None] = {}
        digests_now = self._digested()
        for name, saved in self._saved.items():
            if name in digests_now and name in self._digests:
                changed = saved.moved or digests_now[name] != self._digests[name]
            else:
                changed = saved.changed
            if changed:
                found[name] = None
                saved.restore()
        for table, key, parameter, name in self._places:
            if table.get(key) is not parameter:
                found[name] = None
                table[key] = parameter
        return list(found)
