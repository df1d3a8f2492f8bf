"""Inputs of a forward: the example, the structure of a call, and a call with another batch."""

from __future__ import annotations

import collections
import enum
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.errors import InputError

_SIMPLE = (
    bool, int, float, complex, str, bytes, set, frozenset, range, slice, enum.Enum,
    torch.dtype, torch.device, torch.layout,
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One call of the model, as in training.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Example:
        """From a tensor, a tuple of positional arguments, or a dict of keyword arguments.

        Raises:
            InputError: For anything else.
        """
        named = dict(kwargs or {})
        if isinstance(inputs, Mapping):
            return cls((), {**inputs, **named})
        if isinstance(inputs, tuple):
            return cls(inputs, named)
        if isinstance(inputs, Tensor | list):
            return cls((inputs,), named)
        raise InputError(
            f"example_inputs is a {type(inputs).__name__}: give a tensor, a tuple of positional "
            "arguments, or a dict of keyword arguments"
        )

    def larger_batch(self) -> Example | None:
        """The same call with one more sample, or ``None`` where no common batch is seen."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        sizes = collections.Counter(
            leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0
        )
        if not sizes:
            return None
        batch = sizes.most_common(1)[0][0]
        grown = [
            torch.cat([leaf, leaf[:1]])
            if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch > 0
            else leaf
            for leaf in leaves
        ]
        args, kwargs = pytree.tree_unflatten(grown, spec)
        return Example(args, kwargs)


def same_value(value: Any, expected: Any) -> bool:
    """Whether a value that a trace read is still the one that it saw.

    Numbers, strings and the like compare by value, containers item by item, all else by identity.
    """
    if value is expected:
        return True
    if type(value) is not type(expected):
        return False
    if isinstance(value, list | tuple):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(value, dict):
        return list(value) == list(expected) and all(
            same_value(item, expected[key]) for key, item in value.items()
        )
    return isinstance(value, _SIMPLE) and bool(value == expected)


def frozen(value: Any) -> Any:
    """A value as it is now: containers are copied, whatever is in them."""
    if type(value) in (list, tuple):
        return type(value)(map(frozen, value))
    if type(value) is dict:
        return {key: frozen(item) for key, item in value.items()}
    return value.copy() if type(value) is set else value


class CallSpec:
    """The structure of one call of a module: where tensors stand, and every other value.

    A call matches when it has the same nesting with tensors in the same places and the same values
    elsewhere; sizes of tensors are free.
    """

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record a call of ``module.forward``.

        Raises:
            TypeError: If the arguments do not fit the forward's signature.
        """
        self.signature = inspect.signature(_plain_forward(module))
        leaves, self.tree = pytree.tree_flatten(self._bind(args, kwargs))
        self.constants = [None if isinstance(leaf, Tensor) else frozen(leaf) for leaf in leaves]
        self.positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        # The everyday call: these tensors, by position, and everything else at its recorded value.
        plain = not kwargs and all(isinstance(value, Tensor) for value in args)
        self.arity = len(args) if plain else -1

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The call's tensors in the graph's order, or ``None`` when the call does not match."""
        if not kwargs and len(args) == self.arity and all(isinstance(a, Tensor) for a in args):
            return list(args)
        try:
            leaves, tree = pytree.tree_flatten(self._bind(args, kwargs))
        except TypeError:
            return None
        if tree != self.tree:
            return None
        positions = set(self.positions)
        for index, (leaf, constant) in enumerate(zip(leaves, self.constants, strict=True)):
            if isinstance(leaf, Tensor) != (index in positions):
                return None
            if index not in positions and not same_value(leaf, constant):
                return None
        return [leaves[index] for index in self.positions]

    def call(self, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with ``tensors`` (or anything that stands for them) in their places."""
        leaves = list(self.constants)
        for index, tensor in zip(self.positions, tensors, strict=True):
            leaves[index] = tensor
        arguments: dict[str, Any] = pytree.tree_unflatten(leaves, self.tree)
        bound = inspect.BoundArguments(self.signature, collections.OrderedDict(arguments))
        return bound.args, bound.kwargs

    def names(self) -> list[str]:
        """A readable, unique name for each tensor: the argument's, with its path inside."""
        arguments = pytree.tree_unflatten(list(range(len(self.constants))), self.tree)
        paths = [path for path, _ in pytree.tree_flatten_with_path(arguments)[0]]
        return [
            "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in paths[index])
            for index in self.positions
        ]

    def __eq__(self, other: object) -> bool:
        """Whether both accept the same calls."""
        return (
            isinstance(other, CallSpec)
            and self.tree == other.tree
            and self.positions == other.positions
            and all(map(same_value, self.constants, other.constants))
        )

    __hash__ = None  # type: ignore[assignment]


def _plain_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward that the user wrote, bound."""
    forward = module.forward
    return getattr(forward, "original", forward)
