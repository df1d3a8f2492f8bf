"""What a forward leaves in attributes of its modules: the state in which its next call begins.

Detectors keep the anchors of the last input size, window attention the window that fits. A first
call computes and stores them; every further one finds them there. So graphs are captured and
verified as of the second call; the first one runs the module's own forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.core.hooks import records_outputs
from st3fx.core.same import frozen, is_value
from st3fx.core.state import INTERNAL, Attributes

_MISSING = object()


class Left(NamedTuple):
    """An attribute that a forward has set; ``holder`` is the dict of the module that it lies in."""

    holder: dict[str, Any]
    name: str
    value: Any


@contextlib.contextmanager
def noted(model: nn.Module) -> Iterator[list[Left]]:
    """Note what is set inside: numbers, words, tensors without history, lists of these.

    Hooks that record outputs are noted too; activations with a history are not: every call makes
    its own. Nothing at all is noted where something else has changed (another hook, a module, an
    object): a part of a state is none.
    """
    attributes = Attributes(model)
    before = {
        module: {key: dict(module.__dict__[key]) for key in _ENTERED} for module in model.modules()
    }
    left: list[Left] = []
    yield left
    modules = dict(model.named_modules(remove_duplicate=False))  # a ScriptModule refuses paths
    for name in attributes.changes():
        path, _, key = name.rpartition(".")
        module = modules[path]
        holder, keys = module.__dict__, [key]
        if key in _ENTERED:
            holder, entries = module.__dict__[key], before[module][key]
            keys = [k for k in {**entries, **holder} if holder.get(k) is not entries.get(k)]
        for changed in keys:
            leaves = pytree.tree_leaves(holder.get(changed, _MISSING))
            if changed in INTERNAL or not all(map(_is_plain, leaves)):
                left.clear()
                return
            if all(map(_has_no_history, leaves)):
                left.append(Left(holder, changed, frozen(holder[changed])))


_ENTERED = ("_buffers", "_forward_hooks")
"""Dicts of a module of which single entries are looked at."""


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) or value is None or is_value(value) or records_outputs(value)


def _has_no_history(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.grad_fn is None and not isinstance(value, nn.Parameter)
    return True


@contextlib.contextmanager
def settled(left: Sequence[Left]) -> Iterator[None]:
    """Attributes as they were left, inside."""
    saved = [(holder, name, holder.get(name, _MISSING)) for holder, name, _ in left]
    for holder, name, value in left:
        holder[name] = _again(value)
    try:
        yield
    finally:
        for holder, name, value in saved:
            if value is _MISSING:
                holder.pop(name, None)
            else:
                holder[name] = value


def _again(value: Any) -> Any:
    """A copy, so that what runs may write to it."""
    return frozen(value, torch.clone)
