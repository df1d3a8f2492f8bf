"""The structure of a call: which arguments are tensors, and what everything else is.

Nested arguments: where tensors stand in them, and what everything else is.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.graphs.purity import readable
from st3fx.modules.same import frozen, is_value, meta_of, same_value


@dataclass(frozen=True)
class Label:
    """Stands for a tensor while its place is looked up."""

    index: int
    device: ClassVar[torch.device] = torch.device("cpu")
    """What the constructor of a ``PackedSequence`` asks its lengths for."""


@dataclass(frozen=True)
class Structure:
    """Nested arguments with holes where the tensors are."""

    tree: pytree.TreeSpec
    constants: list[Any]
    positions: list[int]
    numbers: dict[int, type] = field(default_factory=dict)
    """Those of the holes that take a number of one type, and no tensor."""

    @classmethod
    def of(cls, arguments: Any) -> Structure:
        """That of nested arguments, whose tensors are left out."""
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
            if index in self.numbers:
                fits = type(leaf) is self.numbers[index]
            else:
                fits = isinstance(leaf, Tensor) if index in holes else same_value(leaf, constant)
            if not fits:
                return None
        return leaves

    def fill(self, tensors: list[Any]) -> Any:
        """The arguments with ``tensors`` in the holes."""
        leaves = list(self.constants)
        for index, tensor in zip(self.positions, tensors, strict=True):
            leaves[index] = tensor
        return pytree.tree_unflatten(leaves, self.tree)

    def same(self, other: Structure) -> bool:
        """Whether both are of calls that differ in their tensors alone."""
        return (
            self.tree == other.tree
            and self.positions == other.positions
            and self.numbers == other.numbers
            and all(map(same_value, self.constants, other.constants))
        )


def firsts(tensors: Sequence[Any]) -> list[int]:
    """For each tensor the first place where it stands; every number stands for itself."""
    places: dict[int, int] = {}
    return [
        places.setdefault(id(tensor), place) if isinstance(tensor, Tensor) else place
        for place, tensor in enumerate(tensors)
    ]


def step(key: Any) -> str:
    """One step into nested arguments: a key, a number or a field's name."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


class Applies(Protocol):
    """A further condition on the tensors of a call."""

    def hold(self, tensors: Sequence[Any]) -> bool:
        """Whether it holds."""

    def words(self) -> list[str]:
        """What it asks for."""


class CallSpec:
    """The structure of one call of a module: where tensors stand, and every other value.

    A call matches when it binds the same arguments, by position or by name, with tensors in the
    same places and the same values elsewhere; sizes of tensors are free, but for ``guards``. Where
    the recorded call had one tensor twice, so must any other: attention asks ``query is key``.
    Where numbers are free (:meth:`freed`), a call may have others.

    Attributes:
        metas: Of the recorded call's tensors, in the graph's order: all but their data; free
            numbers as they were.
        readable: Those of integers and booleans themselves, as long as no graph is made of it.
        guards: What else must hold of a call's tensors, or ``None``.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record a call of ``module.forward``.

        Raises:
            TypeError: If the arguments do not fit the forward's signature.
        """
        forward = _plain_forward(module)
        self._signature = _signature(forward)
        # The everyday call: these tensors, by position, and everything else as it was recorded.
        plain = not kwargs and all(isinstance(value, Tensor) for value in args)
        self._arity = len(args) if plain else -1
        if plain and hasattr(forward, "__func__"):
            self._given, self._bound = _of_tensors(forward.__func__, len(args))
            self._order, tensors = [*range(len(args))], list(args)
        else:
            self._given = Structure.of((args, kwargs))
            self._bound = Structure.of(_bound(self._signature, args, kwargs))
            self._order = self._places()
            leaves = pytree.tree_leaves((args, kwargs))
            tensors = [leaves[position] for position in self._given.positions]
        self.metas = [*map(meta_of, tensors)]
        self.readable = [*map(readable, tensors)]
        self._firsts = firsts(tensors)
        self.guards: Applies | None = None

    def _places(self) -> list[int]:
        """Where the given call's tensors stand among the bound call's leaves."""
        count = len(self._given.positions)
        labels = self._given.fill([Label(number) for number in range(count)])
        leaves = pytree.tree_leaves(_bound(self._signature, *labels))
        places = {leaf.index: n for n, leaf in enumerate(leaves) if isinstance(leaf, Label)}
        return [places[index] for index in range(count)]

    @property
    def numbers(self) -> frozenset[int]:
        """Where the call has numbers, counted among all that it was given; free ones too."""
        kinds = [type(constant) for constant in self._given.constants]
        plain = {place for place, kind in enumerate(kinds) if kind in (int, float)}
        return frozenset(plain | self._given.numbers.keys())

    @property
    def free(self) -> frozenset[int]:
        """Those of the numbers that are free."""
        return frozenset(self._given.numbers)

    def freed(self, numbers: Collection[int]) -> CallSpec:
        """The same calls with any numbers of the same type in some places.

        They are inputs of a graph like tensors, so that it outlives an argument that changes in
        every call: a step, a share, the number of samples.

        Args:
            numbers: The places, of :attr:`numbers`.
        """
        spec, given = copy.copy(self), self._given
        holes = sorted({*given.positions, *numbers})
        known = {place: number for number, place in enumerate(given.positions)}
        where = {known[place]: number for number, place in enumerate(holes) if place in known}
        kinds = {place: type(given.constants[place]) for place in numbers}
        values = [given.constants[place] for place in holes]
        constants = [None if n in kinds else value for n, value in enumerate(given.constants)]
        spec._given = Structure(given.tree, constants, holes, kinds)
        labels = spec._given.fill([Label(number) for number in range(len(holes))])
        leaves, tree = pytree.tree_flatten(_bound(self._signature, *labels))
        places = {leaf.index: n for n, leaf in enumerate(leaves) if isinstance(leaf, Label)}
        spec._order = [places[number] for number in range(len(holes))]
        found = [None if isinstance(leaf, Label) else frozen(leaf) for leaf in leaves]
        own = {places[number]: kinds[p] for number, p in enumerate(holes) if p in kinds}
        spec._bound = Structure(tree, found, sorted(places.values()), own)
        tensors = [known.get(place) for place in holes]
        spec.metas = [
            values[n] if old is None else self.metas[old] for n, old in enumerate(tensors)
        ]
        if self.readable:
            spec.readable = [None if old is None else self.readable[old] for old in tensors]
        spec._firsts = [
            number if old is None else where[self._firsts[old]]
            for number, old in enumerate(tensors)
        ]
        spec._arity = -1
        return spec

    def place(self, number: int) -> int:
        """Where an input of the graph stands among all that the call was given."""
        return self._given.positions[number]

    def covers(self, other: CallSpec) -> bool:
        """Whether a graph for these calls is one for another recorded call."""
        return self.numbers == other.numbers and self == other.freed(self.free)

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

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The call's tensors in the graph's order, or ``None`` when the call does not match."""
        if not kwargs and len(args) == self._arity and all(isinstance(a, Tensor) for a in args):
            found: list[Any] | None = list(args)
        else:
            found = self._match(args, kwargs)
        if found is None or (len(found) > 1 and firsts(found) != self._firsts):
            return None
        return found if self.guards is None or self.guards.hold(found) else None

    def _match(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        leaves = self._given.match((args, kwargs))
        if leaves is not None:
            return [leaves[position] for position in self._given.positions]
        try:
            bound = _bound(self._signature, args, kwargs)
        except TypeError:
            return None
        leaves = self._bound.match(bound)
        return None if leaves is None else [leaves[place] for place in self._order]

    def call(self, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The recorded call with ``tensors``, or anything that stands for them, in their places.

        One that stood in several places is the one given for the first of them.
        """
        args, kwargs = self._given.fill([tensors[first] for first in self._firsts])
        return args, kwargs

    def names(self) -> list[str]:
        """A readable name for each tensor: its argument's, with the path inside."""
        bound = self._bound.fill([Label(place) for place in range(len(self._bound.positions))])
        paths = [path for path, _ in pytree.tree_flatten_with_path(bound)[0]]
        names: dict[str, None] = {}
        for place in self._order:
            name = re.sub(r"\W+", "_", "_".join(map(step, paths[place]))).strip("_")
            names[name if name not in names else f"{name}_{place}"] = None
        return list(names)

    def __eq__(self, other: object) -> bool:
        """Whether both record the same call."""
        if not isinstance(other, CallSpec) or self._firsts != other._firsts:
            return False
        return self._given.same(other._given)

    __hash__ = None  # type: ignore[assignment]


def _bound(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Argument -> value, with the defaults of those that were not given."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@functools.lru_cache(maxsize=512)
def _of_tensors(function: Callable[..., Any], count: int) -> tuple[Structure, Structure]:
    """The structures of an everyday call, as given and as bound: the same for all modules."""
    holes = (torch.empty(0),) * count
    bound = _bound(_of_method(function), holes, {})
    return Structure.of((holes, {})), Structure.of(bound)


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
