"""Regions of a graph that run without gradients, or under autocast: the nodes that enter and leave.

Code of a graph has no ``with``: a node enters a region, another one leaves it. What a failing
operator leaves open, :func:`unwound` closes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import fx


class _Entered(threading.local):
    """Autocast contexts that graphs of this thread are inside of."""

    def __init__(self) -> None:
        self.contexts: list[torch.autocast] = []


_ENTERED = _Entered()


def enter_grad(enabled: bool) -> bool:
    """Switch gradients on or off; gives what they were."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(enabled)
    return before


def leave_grad(before: bool) -> None:
    """Switch gradients back."""
    torch._C._set_grad_enabled(before)


def enter_autocast(
    device_type: str, dtype: torch.dtype | None, enabled: bool, cache_enabled: bool | None
) -> None:
    """Enter ``torch.autocast`` with its arguments."""
    context = torch.autocast(device_type, dtype, enabled, cache_enabled)
    context.__enter__()
    _ENTERED.contexts.append(context)


def leave_autocast() -> None:
    """Leave the last autocast that was entered."""
    _ENTERED.contexts.pop().__exit__(None, None, None)


_OF_AUTOCAST = (enter_autocast, leave_autocast)
_BORDERS = (enter_grad, leave_grad, *_OF_AUTOCAST)


def is_border(node: fx.Node) -> bool:
    """Whether a node enters or leaves a region."""
    return node.op == "call_function" and node.target in _BORDERS


def is_autocast_border(node: fx.Node) -> bool:
    """Whether a node enters or leaves a region that changes what operators give."""
    return node.op == "call_function" and node.target in _OF_AUTOCAST


@contextlib.contextmanager
def unwound() -> Iterator[None]:
    """Leave what is still open where code inside fails."""
    gradients, depth = torch.is_grad_enabled(), len(_ENTERED.contexts)
    try:
        yield
    except BaseException:
        while len(_ENTERED.contexts) > depth:
            leave_autocast()
        leave_grad(gradients)
        raise
