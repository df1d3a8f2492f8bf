"""Where tensors come from while a dispatch mode watches a forward: what every follower needs.

What a mark says is its maker's business: a conversion follows parameters into products, a count
follows what is constant. Both rest on the same: marks that end with what they mark, operators that
only move values, what an operator writes to, and whose own forward runs.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

Mark = TypeVar("Mark")

MOVING: Final = frozenset(
    ("clone", "_to_copy", "contiguous", "_unsafe_view", "_reshape_alias", "reshape",
     "_reshape_copy")
)  # fmt: skip
"""Operators beside views that give the values of one tensor back."""


class Marks(Generic[Mark]):
    """What is known of tensors, each for as long as it lives."""

    def __init__(self, *, of_memory: bool) -> None:
        """Begin without any.

        Args:
            of_memory: Whether a mark belongs to a tensor's memory, so that its views and its
                ``.data`` share it, or to the object alone.
        """
        self._of_memory = of_memory
        self._owned: dict[int, Mark] = {}
        self._marks: dict[int, tuple[Any, Mark]] = {}

    def own(self, tensor: Tensor, mark: Mark) -> None:
        """Mark a tensor of the model, which lives as long as the watch, for good."""
        self._owned[id(tensor)] = mark

    def owned(self, tensor: Tensor) -> Mark | None:
        """What was said of a tensor of the model itself."""
        return self._owned.get(id(tensor))

    def put(self, tensor: Tensor, mark: Mark) -> None:
        """Mark any other tensor anew; those of the model keep theirs."""
        if id(tensor) in self._owned:
            return
        storage = storage_of(tensor) if self._of_memory else None
        if storage is None:
            self._marks[id(tensor)] = (weakref.ref(tensor), mark)
        else:
            self._marks[storage._cdata] = (StorageWeakRef(storage), mark)

    def of(self, tensor: Tensor) -> Mark | None:
        """What is known of a tensor."""
        found = self._owned.get(id(tensor))
        if found is not None or not self._marks:
            return found
        storage = storage_of(tensor) if self._of_memory else None
        entry = self._marks.get(id(tensor) if storage is None else storage._cdata)
        if entry is None:
            return None
        # An address may be another tensor's by now.
        weak, mark = entry
        alive = weak() is tensor if storage is None else not weak.expired()
        return mark if alive else None


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """The memory of a strided tensor, ``None`` for any other (sparse, nested, wrapped)."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a wrapper of another library
        return None


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an ATen operator writes to."""
    if not func._schema.is_mutable:
        return []
    found: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            found += given if isinstance(given, list | tuple) else [given]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


@contextlib.contextmanager
def names_kept(
    model: nn.Module,
    stack: list[str],
    enter: Callable[..., None] = lambda *_: None,
    leave: Callable[..., None] = lambda *_: None,
) -> Iterator[None]:
    """Keep the full names of the modules whose own forwards run, inside.

    Args:
        model: A module that is not in it counts as code of the one that calls it.
        stack: The names, the innermost last; it begins with that of the caller, the empty one.
        enter: Is told before each call of a module: itself, its name, the call's arguments.
        leave: Is told afterwards: itself, its name.
    """
    names = {id(module): name for name, module in model.named_modules()}
    original = nn.Module.__call__

    def watch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module))
        if name is not None:
            enter(module, name, args, kwargs)
        stack.append(stack[-1] if name is None else name)
        try:
            return original(module, *args, **kwargs)
        finally:
            stack.pop()
            if name is not None:
                leave(module, name)

    nn.Module.__call__ = watch  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]
