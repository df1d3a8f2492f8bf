"""Nested arguments: where tensors stand in them, and what everything else is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from st3fx.core.same import frozen, same_value


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
            and all(map(same_value, self.constants, other.constants))
        )


def firsts(tensors: Sequence[Any]) -> list[int]:
    """For each tensor the first place where it stands."""
    places: dict[int, int] = {}
    return [places.setdefault(id(tensor), place) for place, tensor in enumerate(tensors)]


def step(key: Any) -> str:
    """One step into nested arguments: a key, a number or a field's name."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
