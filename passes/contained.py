"""Tensors in lists and dicts that lie in a module's attributes: tables by device, anchors by level.

Code takes them out of the container and computes with them as they are; in a graph each is an item
of the attribute.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from st3fx.core.state import INTERNAL

_INTERNAL = INTERNAL | {"_flat_weights"}


def contained_tensors(root: nn.Module) -> dict[int, tuple[str, Any]]:
    """The tensors by their ids: full name of the attribute, and index or key in it."""
    found: dict[int, tuple[str, Any]] = {}
    for path, module in root.named_modules():
        for key, value in module.__dict__.items():
            if key in _INTERNAL or not isinstance(value, dict | list | tuple):
                continue
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            name = f"{path}.{key}" if path else key
            found |= {id(x): (name, index) for index, x in pairs if isinstance(x, Tensor)}
    return found


class ProxiesForTensors(TorchFunctionMode):
    """Hands proxies of tensors to torch's functions in place of the tensors."""

    def __init__(self, proxy_of: Callable[[Tensor], fx.Proxy | None]) -> None:
        """Prepare.

        Args:
            proxy_of: Gives a tensor's proxy, ``None`` for a tensor that stays as it is.
        """
        super().__init__()
        self._proxy_of = proxy_of

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function, or look up an attribute of a tensor."""
        swapped = False

        def proxied(tensor: Tensor) -> Any:
            nonlocal swapped
            proxy = self._proxy_of(tensor)
            swapped = swapped or proxy is not None
            return tensor if proxy is None else proxy

        new_args, new_kwargs = pytree.tree_map_only(Tensor, proxied, (args, kwargs or {}))
        if not swapped or not isinstance(new_args[0], fx.Proxy):
            return func(*new_args, **new_kwargs)
        if func.__name__ == "__get__":
            return getattr(new_args[0], func.__self__.__name__)
        if inspect.ismethoddescriptor(func):  # a method in C insists on a tensor
            return getattr(new_args[0], func.__name__)(*new_args[1:], **new_kwargs)
        return func(*new_args, **new_kwargs)


def other_function_modes() -> int:
    """How many modes of others would see a call of a torch function."""
    modes = torch.overrides._get_current_function_mode_stack()
    return sum(not isinstance(mode, ProxiesForTensors) for mode in modes)
