"""Recurrent layers keep a second list of their parameters; nobody else knows of it.

``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` hand torch a list of tensors that they made when they were
built. Whoever exchanges a parameter of theirs, or follows what their forward reads, asks here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from torch import Tensor, nn

FUNCTIONS: Final = ("lstm", "gru", "rnn_tanh", "rnn_relu")
"""Names of torch's functions that are given such a list."""

LISTS: Final = ("_flat_weights", "_flat_weight_refs")
"""Attributes of a layer that hold its parameters once more."""


def is_list(module: nn.Module, name: str) -> bool:
    """Whether an attribute holds parameters of a recurrent layer once more."""
    return name in LISTS and isinstance(module, nn.RNNBase)


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Exchange a parameter of any module, and with it what its forward reads."""
    module._parameters[name] = tensor  # type: ignore[assignment]
    if isinstance(module, nn.RNNBase):
        module._flat_weights[module._flat_weights_names.index(name)] = tensor


def list_anew(module: nn.Module) -> None:
    """Let the list of a recurrent layer hold the parameters that it has now."""
    if isinstance(module, nn.RNNBase):
        held = [module._parameters[key] for key in module._flat_weights_names]
        module.__dict__["_flat_weights"] = held


def computed_list(base: type[nn.Module]) -> dict[str, property]:
    """What a class below ``base`` needs so that its list has what its attributes give."""
    if not issubclass(base, nn.RNNBase):
        return {}

    def get(self: Any) -> Any:
        return [
            getattr(self, n) if n in self._parameters or n in self.__dict__ else w
            for n, w in zip(self._flat_weights_names, self.__dict__["_flat_weights"], strict=False)
        ]

    def put(self: Any, value: Any) -> None:
        self.__dict__["_flat_weights"] = value

    return {"_flat_weights": property(get, put)}


@contextlib.contextmanager
def other_lists(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Other tensors in the lists of a model's layers, inside."""
    lists = [(m, m._flat_weights) for m in model.modules() if isinstance(m, nn.RNNBase)]
    for module, weights in lists:
        module._flat_weights = [w if w is None else change(w) for w in weights]
    try:
        yield
    finally:
        for module, weights in lists:
            module._flat_weights = weights


def quiet_update(when: Callable[[], Any]) -> dict[str, Callable[..., None]]:
    """What takes the place of a method of ``nn.RNNBase`` that compares parameters with the list.

    A tracer's proxies differ from what they stand for.

    Args:
        when: Whether nothing is to be compared now.
    """
    original = nn.RNNBase._update_flat_weights

    def update(layer: nn.RNNBase) -> None:
        if not when():
            original(layer)

    return {"_update_flat_weights": update}
