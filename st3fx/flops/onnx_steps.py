"""Runs the body of a loop in an ONNX graph step by step, for a count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import onnx

from st3fx.flops.onnx_entry import Entry
from st3fx.flops.onnx_types import sizes
from st3fx.flops.onnx_walk import Walk
from st3fx.onnx_passes.normal_form import defined, reads

VISITS = 50_000
"""Nodes that all steps of one loop may have before it is given up."""


class UnknownError(Exception):
    """How a body runs depends on values."""


@contextlib.contextmanager
def aside(walk: Walk) -> Iterator[list[Entry]]:
    """Note entries in a list of their own."""
    kept, walk.entries = walk.entries, []
    try:
        yield walk.entries
    finally:
        walk.entries = kept


def hand_out(walk: Walk, outer: Sequence[str], inner: Sequence[str]) -> None:
    """Give values of a body the names that they have outside."""
    for name, other in zip(outer, inner, strict=True):
        if name:
            walk.alias(name, other)


class Steps:
    """Runs a body step by step.

    Attributes:
        inputs: Of the body.
        outputs: Of the body.
        states: The values that the next step begins with.
        reads: All that the body reads.
        stacked: Of each step the types of what is added to an output of the loop.
        settled: Whether the next step can be no other than the last one, for its states.
    """

    settled = False

    def __init__(self, walk: Walk, body: onnx.GraphProto, states: Sequence[str]) -> None:
        self.walk, self.body = walk, body
        self.names = defined(body)
        self.inputs = [value.name for value in body.input]
        self.outputs = [value.name for value in body.output]
        self.states = list(states)
        self.reads = {name for node in body.node for name in reads(node)} | set(self.outputs)
        self.stacked: list[list[Any]] = []
        self._limit = walk.visits + VISITS
        self._last: list[Entry] = []

    def run(self, places: slice, results: slice, given: dict[str, Any]) -> None:
        """One step.

        Args:
            places: Which inputs of the body are the states.
            results: Which of its outputs are.
            given: Values of other inputs: an array, or a type where it is not constant.
        """
        walk = self.walk
        # The states may be outputs of the last step, whose names are about to be used again.
        held = [f"{name}/state" for name in self.inputs[places]]
        hand_out(walk, held, self.states)
        walk.forget(self.names)
        hand_out(walk, self.inputs[places], held)
        for name, value in given.items():
            if isinstance(value, onnx.TypeProto):
                walk.types.set(name, value)
            else:
                source, array = value
                walk.values.put(name, array, source)
                code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                walk.types.put(name, code, array.shape)
        before = self._signature(held)
        with aside(walk) as entries:
            walk.nodes(self.body.node)
        walk.entries += entries
        self._last = entries
        self.states = self.outputs[results]
        self.settled = before == self._signature(self.states)
        if walk.visits > self._limit:
            raise UnknownError

    def repeat(self, times: int) -> None:
        """Count the last step so many times more."""
        walk = self.walk
        del walk.entries[len(walk.entries) - len(self._last) :]
        walk.entries += [_more(entry, times + 1) for entry in self._last]

    def _signature(self, names: Sequence[str]) -> list[Any]:
        """What the next step can tell of its states."""
        walk = self.walk
        found = []
        for name in names:
            kind = walk.types.get(name)
            array = walk.values.array(name) if name in walk.values else None
            values = None if array is None else (array.dtype, array.tobytes())
            found.append((kind and kind.SerializeToString(), values, name in walk.made))
        return found


def _more(entry: Entry, times: int) -> Entry:
    return Entry(entry.counted, entry.inputs, entry.outputs, entry.module, entry.missing,
                 entry.times * times)  # fmt: skip


def stack(
    walk: Walk, names: Sequence[str], steps: Sequence[Sequence[Any]], count: int,
    axes: Sequence[int],
) -> None:  # fmt: skip
    """Types of what every step adds a slice to."""
    walk.forget(names)
    for index, name in enumerate(names):
        kinds = [kinds[index] for kinds in steps]
        shapes = {sizes(kind) for kind in kinds}
        shape = next(iter(shapes)) if len(shapes) == 1 else None
        if shape is None:
            walk.types.set(name, None)
            continue
        axis = (axes[index] if axes else 0) % (len(shape) + 1)
        whole = (*shape[:axis], count, *shape[axis:])
        walk.types.put(name, kinds[0].tensor_type.elem_type, whole)
