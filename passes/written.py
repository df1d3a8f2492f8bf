"""Parameters that a forward writes to, and how a trial run leaves them as they were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from st3fx.core.stand_ins import meta_of


class Written:
    """What a run has written to, among the parameters of a model."""

    def __init__(self, model: nn.Module) -> None:
        """Before the run."""
        self._parameters: dict[int, tuple[str, Tensor]] = {
            tensor.untyped_storage()._cdata: (name, tensor)
            for name, tensor in model.named_parameters()
            if meta_of(tensor) is not None
        }
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An operator is about to run."""
        if not func._schema.is_mutable:
            return
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            for tensor in given if isinstance(given, list | tuple) else [given]:
                if isinstance(tensor, Tensor) and meta_of(tensor) is not None:
                    self._keep(tensor)

    def _keep(self, tensor: Tensor) -> None:
        name, parameter = self._parameters.get(tensor.untyped_storage()._cdata, ("", tensor))
        if name and name not in self._before:
            self._before[name] = (parameter, parameter.detach().clone())

    def set_back(self) -> list[str]:
        """Undo it; the names of the parameters."""
        with torch.no_grad():
            for parameter, before in self._before.values():
                parameter.copy_(before)
        return list(self._before)
