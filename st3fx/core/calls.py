"""The structure of a call: which arguments are tensors, and what everything else is."""

from __future__ import annotations

import copy
import enum
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.core.known_data import readable
from st3fx.core.stand_ins import Meta, meta_of

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


def frozen(value: Any) -> Any:
    """A value as it is now: containers are copied, whatever is in them."""
    if type(value) in (list, tuple):
        return type(value)(map(frozen, value))
    if type(value) is dict:
        return {key: frozen(item) for key, item in value.items()}
    return value.copy() if type(value) is set else value


class Applies(Protocol):
    """A further condition on the tensors of a call."""

    def hold(self, tensors: Sequence[Any]) -> bool:
        """Whether it holds."""

    def words(self) -> list[str]:
        """What it asks for."""


class CallSpec:
    """The structure of one call of a module: where tensors stand, and every other value.

    A call matches when it binds the same arguments, by position or by name, with tensors in the
    same places and the same values elsewhere; sizes of tensors are free, but for ``guards``.

    Attributes:
        metas: Of the recorded call's tensors, in the graph's order: all but their data.
        readable: Those of integers and booleans themselves, as long as no graph is made of it.
        guards: What else must hold of a call's tensors, or ``None``.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record a call of ``module.forward``.

        Raises:
            TypeError: If the arguments do not fit the forward's signature.
        """
        self._signature = _signature(_plain_forward(module))
        self._given = _Structure.of((args, kwargs))
        self._bound = _Structure.of(self._bind(args, kwargs))
        # The everyday call: these tensors, by position, and everything else as it was recorded.
        plain = not kwargs and all(isinstance(value, Tensor) for value in args)
        self._arity = len(args) if plain else -1
        self._order = [*range(len(args))] if plain else self._places()
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaves[position] for position in self._given.positions]
        self.metas = [*map(meta_of, tensors)]
        self.readable = [*map(readable, tensors)]
        self.guards: Applies | None = None

    def _places(self) -> list[int]:
        """Where the given call's tensors stand among the bound call's leaves."""
        count = len(self._given.positions)
        labels = self._given.fill([_Label(number) for number in range(count)])
        leaves = pytree.tree_leaves(self._bind(*labels))
        places = {leaf.index: n for n, leaf in enumerate(leaves) if isinstance(leaf, _Label)}
        return [places[index] for index in range(count)]

    def guarded(self, guards: Applies | None) -> CallSpec:
        """The same calls, as far as ``guards`` hold, without the recorded call's data."""
        spec = copy.copy(self)
        spec.guards = guards
        spec.readable = []
        return spec

    def words(self) -> list[str]:
        """What must hold of a call's tensors beside their places."""
        return [] if self.guards is None else self.guards.words()

    def objects(self) -> list[Any]:
        """Arguments with a state of their own: neither tensors nor values, functions or types."""
        return [
            leaf
            for leaf in self._given.constants
            if not (leaf is None or is_value(leaf) or callable(leaf))
        ]

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The call's tensors in the graph's order, or ``None`` when the call does not match."""
        if not kwargs and len(args) == self._arity and all(isinstance(a, Tensor) for a in args):
            found: list[Any] | None = list(args)
        else:
            found = self._match(args, kwargs)
        if found is None or self.guards is None or self.guards.hold(found):
            return found
        return None

    def _match(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        leaves = self._given.match((args, kwargs))
        if leaves is not None:
            return [leaves[position] for position in self._given.positions]
        try:
            bound = self._bind(args, kwargs)
        except TypeError:
            return None
        leaves = self._bound.match(bound)
        return None if leaves is None else [leaves[place] for place in self._order]

    def call(self, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The recorded call with ``tensors`` (or anything that stands for them) in their places."""
        args, kwargs = self._given.fill(tensors)
        return args, kwargs

    def names(self) -> list[str]:
        """A readable name for each tensor: its argument's, with the path inside."""
        bound = self._bound.fill([_Label(place) for place in range(len(self._bound.positions))])
        paths = [path for path, _ in pytree.tree_flatten_with_path(bound)[0]]
        return [
            "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in paths[place])
            for place in self._order
        ]

    def __eq__(self, other: object) -> bool:
        """Whether both record the same call."""
        return isinstance(other, CallSpec) and self._given.same(other._given)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Label:
    """Stands for a tensor while its place is looked up."""

    index: int
    device: ClassVar[torch.device] = torch.device("cpu")
    """What the constructor of a ``PackedSequence`` asks its lengths for."""


@dataclass(frozen=True)
class _Structure:
    """Nested arguments with holes where the tensors are."""

    tree: pytree.TreeSpec
    constants: list[Any]
    positions: list[int]

    @classmethod
    def of(cls, arguments: Any) -> _Structure:
        leaves, tree = pytree.tree_flatten(arguments)
        constants = [None if isinstance(leaf, Tensor) else frozen(leaf) for leaf in leaves]
        positions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        return cls(tree, constants, positions)

    def match(self, arguments: Any) -> list[Any] | None:
        """The leaves, if only tensors differ."""
        leaves, tree = pytree.tree_flatten(arguments)
        if tree != self.tree:
            return None
        holes = set(self.positions)
        for index, (leaf, constant) in enumerate(zip(leaves, self.constants, strict=True)):
            fits = isinstance(leaf, Tensor) if index in holes else same_value(leaf, constant)
            if not fits:
                return None
        return leaves

    def fill(self, tensors: list[Any]) -> Any:
        leaves = list(self.constants)
        for index, tensor in zip(self.positions, tensors, strict=True):
            leaves[index] = tensor
        return pytree.tree_unflatten(leaves, self.tree)

    def same(self, other: _Structure) -> bool:
        return (
            self.tree == other.tree
            and self.positions == other.positions
            and all(map(same_value, self.constants, other.constants))
        )


def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    """That of a bound method is looked up once for all modules of a class."""
    function = getattr(forward, "__func__", None)
    return inspect.signature(forward) if function is None else _of_method(function)


@functools.lru_cache(maxsize=512)
def _of_method(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function.__get__(function))


def _plain_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward that the user wrote, bound."""
    forward = module.forward
    return getattr(forward, "original", forward)
