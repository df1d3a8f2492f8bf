"""Whether a value is still the one that a trace saw.

The tensors among an operator's arguments or results, and those inside of objects.

Tensors without memory that stand for real ones, and copies of modules on them.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from st3fx.modules import rnn
from st3fx.modules.converted import leave
from st3fx.modules.hooks import has_hooks
from st3fx.modules.marks import CONVERSION, FORWARD, PREFIX, SITES, plain_class

_PLAIN = (Tensor, nn.Parameter, FakeTensor)


class Meta(NamedTuple):
    """All of a tensor but its data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def meta_of(tensor: Tensor) -> Meta | None:
    """The metadata of a plain dense tensor, a fake one too; ``None`` for any other kind."""
    if type(tensor) not in _PLAIN or tensor.layout is not torch.strided:
        return None
    if tensor.is_quantized or tensor.is_nested:
        return None
    return Meta(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


class StandIns:
    """One fake tensor for all tensors of a kind, and one copy of each module that is called."""

    def __init__(self) -> None:
        """Empty."""
        self._tensors: dict[Meta, Tensor] = {}
        self._copies: dict[nn.Module, nn.Module] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """For a parameter or buffer: one for all that differ in their data alone."""
        meta = meta_of(tensor)
        if meta is None:
            raise TypeError("is no plain tensor")
        if meta not in self._tensors:
            self._tensors[meta] = fake(meta)
        return self._tensors[meta]

    def module(self, module: nn.Module) -> nn.Module:
        """A private copy of a module, without the forwards that we have put on it.

        Raises:
            ValueError: If hooks, or forwards of others, would run.
        """
        if module not in self._copies:
            _require_own_forward(module)
            make = self._shallow if is_torchs(module) else self._deep
            self._copies[module] = make(module)
        return self._copies[module]

    def _shallow(self, module: nn.Module) -> nn.Module:
        """A copy of one of torch's layers, which keep no state but tensors and flags."""
        twin: nn.Module = object.__new__(plain_class(type(module)))
        own = {key: v for key, v in module.__dict__.items() if not key.startswith(PREFIX)}
        twin.__dict__.update(own)
        twin.__dict__.pop("forward", None)
        for table in ("_parameters", "_buffers"):
            twin.__dict__[table] = {
                key: None if tensor is None else self.tensor(tensor)
                for key, tensor in module.__dict__[table].items()
            }
        inner = {key: m and self._shallow(m) for key, m in module._modules.items()}
        twin.__dict__["_modules"] = inner
        rnn.list_anew(twin)
        return twin

    def _deep(self, module: nn.Module) -> nn.Module:
        """A copy of a user's module."""
        memo: dict[int, Any] = {}
        for inner in module.modules():
            for leaf in pytree.tree_leaves(list(inner.__dict__.values())):
                if isinstance(leaf, Tensor):
                    memo[id(leaf)] = self.tensor(leaf)
            for key in ("forward", FORWARD, CONVERSION, SITES):
                if inner.__dict__.get(key) is not None:
                    memo[id(inner.__dict__[key])] = None
        twin = copy.deepcopy(module, memo)
        for inner in twin.modules():
            inner.__dict__.pop("forward", None)
            leave(inner)
            for key in [key for key in inner.__dict__ if key.startswith(PREFIX)]:
                del inner.__dict__[key]
        return twin


def fake(meta: Meta) -> Tensor:
    """A tensor without memory, under a mode that makes such."""
    return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device=meta.device)


def is_torchs(module: nn.Module) -> bool:
    """Whether a module is made of torch's own layers alone."""
    return all(type(inner).__module__.startswith("torch.nn.") for inner in module.modules())


def _require_own_forward(module: nn.Module) -> None:
    """Refuse hooks, and forwards that others have put on a module; ours stand for its own.

    Raises:
        ValueError: With what was found.
    """
    for inner in module.modules():
        if has_hooks(inner):
            raise ValueError("has hooks")
        forward = inner.__dict__.get("forward")
        if forward is not None and getattr(forward, "replaced", forward) is not None:
            raise ValueError("has a forward of its own")


_SIMPLE = (
    bool, int, float, complex, str, bytes, set, frozenset, range, slice, enum.Enum,
    torch.dtype, torch.device, torch.layout,
)  # fmt: skip


def same_value(value: Any, expected: Any) -> bool:
    """Whether a value that a trace read is still the one that it saw.

    Numbers, strings and the like compare by value, containers item by item, a tensor with the
    metadata that were expected, all else by identity.
    """
    if type(expected) is Meta:
        return isinstance(value, Tensor) and meta_of(value) == expected
    # Containers before identity: dynamo cannot tell whether two tuples are the same object.
    if isinstance(value, list | tuple | dict):
        if type(value) is not type(expected) or len(value) != len(expected):
            return False
        if not isinstance(value, dict):
            return all(map(same_value, value, expected))
        return list(value) == list(expected) and all(
            same_value(item, expected[key]) for key, item in value.items()
        )
    if value is expected:
        return True
    return type(value) is type(expected) and is_value(value) and bool(value == expected)


def is_value(value: Any) -> bool:
    """Whether two such objects are the same when they compare equal."""
    return isinstance(value, _SIMPLE)


def frozen(value: Any, of_tensor: Callable[[Tensor], Any] = lambda tensor: tensor) -> Any:
    """A value as it is now: containers are copied, whatever is in them.

    Args:
        value: Anything.
        of_tensor: What stands for a tensor; by default the tensor itself.
    """
    if type(value) in (list, tuple):
        return type(value)(frozen(item, of_tensor) for item in value)
    if type(value) is dict:
        return {key: frozen(item, of_tensor) for key, item in value.items()}
    if isinstance(value, Tensor):
        return of_tensor(value)
    return value.copy() if type(value) is set else value


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """All tensors, in lists and tuples too: an ATen operator knows no other containers.

    Many times faster than torch's pytree, which costs more than most operators.
    """
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found


def tensors_inside(thing: Any) -> list[Tensor]:
    """All tensors in an object that is no container, and in the objects that it has."""
    found: list[Tensor] = []
    opened: dict[int, Any] = {}
    pending = [thing]
    while pending:
        owner = pending.pop()
        if id(owner) in opened or not _has_state(owner):
            continue
        opened[id(owner)] = owner
        leaves = pytree.tree_leaves(list(vars(owner).values()))
        found += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        pending += reversed(leaves)
    return found


def _has_state(thing: Any) -> bool:
    known = isinstance(thing, Tensor | nn.Module | type) or callable(thing) or is_value(thing)
    return not known and hasattr(thing, "__dict__")
