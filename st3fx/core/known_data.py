"""Data of a graph's nodes that can be known without running the model.

A causal mask is made of sizes alone; whether a padding mask has a gap follows from an argument of
the call. Such data are computed by themselves, from integers and booleans only: these are masks,
lengths and indices, never activations, and cost next to nothing beside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import is_fake
from torch.utils import _pytree as pytree

from st3fx.core.portable import NodeReference, map_leaves
from st3fx.core.purity import is_repeatable

_MOST = 1 << 22
"""Numbers in a tensor that is computed to answer a question."""


class Unknown:
    """In place of a value that depends on data or cannot be had."""

    def __init__(self, reason: str) -> None:
        """Say why, in words."""
        self.reason = reason


class DataError(Exception):
    """An answer depends on data that cannot be looked at."""


def readable(value: Any) -> Tensor | None:
    """A tensor of integers or booleans that may be looked at; ``None`` for anything else."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return None
    if value.is_meta or is_fake(value) or value.numel() > _MOST:
        return None
    return value.detach()


class _Step(NamedTuple):
    """An operator with its arguments, in which other steps stand by number."""

    is_method: bool
    target: Any
    args: Any
    kwargs: Any


class DataProgram:
    """How to compute the data of some nodes of a graph: operators in their order."""

    def __init__(
        self,
        values: Mapping[fx.Node, Any],
        inputs: Mapping[fx.Node, int],
        is_written: Callable[[fx.Node], bool],
    ) -> None:
        """Prepare; :meth:`add` plans nodes.

        Args:
            values: What the nodes hold, without data.
            inputs: Placeholders whose data may be looked at -> which of the call's tensors.
            is_written: Whether a node's value may have been written to.
        """
        self._values = values
        self._inputs = inputs
        self._is_written = is_written
        self._numbers: dict[fx.Node, int] = {}
        self._steps: list[_Step | int] = []
        self._reading: set[int] = set()

    def add(self, node: fx.Node) -> Any:
        """What stands for a node in the arguments of others: its value, or a reference.

        Raises:
            DataError: If its data depend on more than sizes, constants and readable inputs.
        """
        leaves = pytree.tree_leaves(self._values[node])
        if not any(isinstance(leaf, (Tensor, Unknown)) for leaf in leaves):
            return self._values[node]
        if node not in self._numbers:
            if sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)) > _MOST:
                raise DataError("depends on a large tensor")
            if self._is_written(node):
                raise DataError("depends on a tensor that is written to")
            self._numbers[node] = self._append(node)
        return NodeReference(self._numbers[node])

    def _append(self, node: fx.Node) -> int:
        if node in self._inputs:
            self._reading.add(len(self._steps))
            self._steps.append(self._inputs[node])
            return len(self._steps) - 1
        if not is_repeatable(node):
            raise DataError("depends on the data of a tensor")
        used: list[int] = []

        def known(leaf: Any) -> Any:
            found = self.add(leaf) if isinstance(leaf, fx.Node) else leaf
            used.extend([found.number] if isinstance(found, NodeReference) else [])
            return found

        args, kwargs = map_leaves([node.args, node.kwargs], known)
        if not self._reading.isdisjoint(used):
            self._reading.add(len(self._steps))
        self._steps.append(_Step(node.op == "call_method", node.target, args, kwargs))
        return len(self._steps) - 1

    def reads(self, node: fx.Node) -> bool:
        """Whether a node's data depend on the call's tensors.

        Raises:
            DataError: As :meth:`add`.
        """
        stands = self.add(node)
        return isinstance(stands, NodeReference) and stands.number in self._reading

    def read(self, tensors: Sequence[Any]) -> list[Any]:
        """Those of a call's tensors that the planned steps look at."""
        return [tensors[step] for step in self._steps if isinstance(step, int)]

    def data(self, node: fx.Node, known: list[Any], tensors: Sequence[Any]) -> Any:
        """Compute a planned node.

        Args:
            node: It must have been added.
            known: What earlier steps gave; longer afterwards.
            tensors: The call's.
        """
        stands = self.add(node)
        for step in self._steps[len(known) :]:
            known.append(_run(step, known, tensors))
        return known[stands.number] if isinstance(stands, NodeReference) else stands


def _run(step: _Step | int, known: list[Any], tensors: Sequence[Any]) -> Any:
    if not isinstance(step, _Step):
        return tensors[step]

    def resolve(leaf: Any) -> Any:
        if isinstance(leaf, torch.device) and leaf.type == "meta":
            return torch.device("cpu")  # of a model without values: positions have some
        return known[leaf.number] if isinstance(leaf, NodeReference) else leaf

    args, kwargs = map_leaves([step.args, step.kwargs], resolve)
    if step.is_method:
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    return step.target(*args, **kwargs)
