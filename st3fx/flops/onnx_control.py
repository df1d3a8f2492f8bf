"""Takes in the bodies of ``If``, ``Loop`` and ``Scan`` step by step, as far as they are known.

A branch is taken where its condition is constant, or where both cost the same. A loop is run as
often as its constants say, with the number of the step as a constant, so that each step has the
shapes and the weights that it has. Once a step is sure to be like the last one, it is counted for
all that follow. What is not known is named: ``Loop`` among the operators without a rule.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx

from st3fx.errors import FlopsError
from st3fx.flops import onnx_node
from st3fx.flops.collect import Collector
from st3fx.flops.onnx_node import Entry
from st3fx.flops.onnx_types import sizes
from st3fx.flops.onnx_walk import Walk
from st3fx.passes.onnx.normal_form import bodies, defined, reads

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
        walk.entries += [
            dataclasses.replace(entry, times=entry.times * (times + 1)) for entry in self._last
        ]

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


def take(walk: Walk, node: onnx.NodeProto) -> None:
    """Take in an operator with bodies: what it costs, and what its outputs are."""
    before = len(walk.entries)
    walk.depth += 1
    try:
        if next(bodies(node), None) is None:
            raise UnknownError  # a damaged file
        {"If": _branch, "Loop": _loop, "Scan": _scan}[node.op_type](walk, node)
    except (UnknownError, FlopsError):
        del walk.entries[before:]
        _give_up(walk, node)
    finally:
        walk.depth -= 1


def _give_up(walk: Walk, node: onnx.NodeProto) -> None:
    """Name an operator, unless what is in it costs nothing, and note what is known of its outputs.

    A branch gives what both have in common; what a loop carries is known where it does not change.
    """
    if _is_old_scan(walk, node) or next(bodies(node), None) is None:
        walk.miss(node.op_type)
        walk.forget(node.output)
        walk.types.lose(node.output)
        return
    results, costs = [], False
    for body in bodies(node):
        with aside(walk) as entries:
            _open(walk, node, body)
            walk.nodes(body.node)
        costs = costs or bool(entries)
        results.append([walk.types.get(value.name) for value in body.output])
        walk.forget(defined(body))
    if costs:
        walk.miss(node.op_type)
    walk.forget(node.output)
    if node.op_type == "If":
        for name, *kinds in zip(node.output, *results, strict=True):
            same = all(kind is not None and kind == kinds[0] for kind in kinds)
            walk.types.set(name, kinds[0] if same else None)
        return
    carried = [walk.types.get(name) for name in _states(node)]
    after = results[0][1:] if node.op_type == "Loop" else results[0]
    for index, name in enumerate(node.output):
        kind = carried[index] if index < len(carried) else None
        walk.types.set(name, kind if kind is not None and kind == after[index] else None)


def _is_old_scan(walk: Walk, node: onnx.NodeProto) -> bool:
    """Whether a ``Scan`` goes along sequences of their own lengths in a batch: opset 8."""
    return node.op_type == "Scan" and walk.types.version < 9


def _states(node: onnx.NodeProto) -> Sequence[str]:
    """The values that a loop begins with."""
    if node.op_type == "If":
        return ()
    if node.op_type == "Loop":
        return list(node.input[2:])
    return list(node.input[: len(node.input) - onnx_node.attributes(node)["num_scan_inputs"]])


def _open(walk: Walk, node: onnx.NodeProto, body: onnx.GraphProto) -> None:
    """Give the inputs of a body their types, as in any step."""
    names = [value.name for value in body.input]
    walk.forget(names)
    if node.op_type == "Loop":
        walk.types.put(names[0], onnx.TensorProto.INT64, ())
        walk.types.put(names[1], onnx.TensorProto.BOOL, ())
        names = names[2:]
    states = _states(node)
    for name, state in zip(names, states, strict=False):
        walk.types.alias(name, state)
    for name, source, axis in zip(names[len(states) :], *_scanned(node), strict=False):
        shape = walk.types.shape(source)
        if shape is None:
            walk.types.lose([name])
        else:
            walk.types.put(name, walk.types.element(source), _without(shape, axis))


def _scanned(node: onnx.NodeProto) -> tuple[Sequence[str], Sequence[int]]:
    """What a ``Scan`` goes along, and which dimension of it."""
    if node.op_type != "Scan":
        return (), ()
    about = onnx_node.attributes(node)
    sources = node.input[len(_states(node)) :]
    return sources, about.get("scan_input_axes") or [0] * len(sources)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def _branch(walk: Walk, node: onnx.NodeProto) -> None:
    """The branch that a constant condition chooses, else both if they cost the same."""
    about = onnx_node.attributes(node)
    branches: list[onnx.GraphProto] = [about["then_branch"], about["else_branch"]]
    if node.input[0] in walk.values:
        chosen = branches[0 if walk.values.array(node.input[0]).item() else 1]
        walk.nodes(chosen.node)
        hand_out(walk, node.output, [value.name for value in chosen.output])
        return
    found = []
    for branch in branches:
        with aside(walk) as entries:
            walk.nodes(branch.node)
        found.append(entries)
    if _summed(found[0]) != _summed(found[1]):
        raise UnknownError
    walk.entries += found[0]
    walk.forget(node.output)
    outputs = [[walk.types.get(value.name) for value in branch.output] for branch in branches]
    for name, first, second in zip(node.output, *outputs, strict=True):
        walk.types.set(name, first if first == second else None)


def _summed(entries: Sequence[Entry]) -> tuple[Any, ...]:
    collector = Collector("exact")
    for entry in entries:
        entry.add(collector)
    return collector.layers, collector.ops, collector.unknown


def _loop(walk: Walk, node: onnx.NodeProto) -> None:
    """A ``Loop`` with a known number of steps: a constant, or by a condition that is constant."""
    body = next(bodies(node))
    count, condition = [*node.input, "", ""][:2]
    limit = int(_number(walk, count)) if count else None
    on = bool(_number(walk, condition)) if condition else True
    steps = Steps(walk, body, node.input[2:])
    number, wants = steps.inputs[:2]
    carried = slice(2, None)
    results = slice(1, 1 + len(steps.states))
    done, shapes = 0, list[Any]()
    while on and (limit is None or done < limit):
        given = {number: ("", np.array(done)), wants: ("", np.array(on))}
        steps.run(carried, results, given)
        done += 1
        shapes = [walk.types.get(name) for name in steps.outputs[results.stop :]]
        on = bool(_number(walk, steps.outputs[0]))
        steps.stacked.append(shapes)
        if steps.settled and on and number not in steps.reads and limit is not None:
            steps.repeat(limit - done)
            done = limit
    hand_out(walk, node.output[: len(steps.states)], steps.states)
    stack(walk, node.output[len(steps.states) :], steps.stacked, done, [])


def _number(walk: Walk, name: str) -> Any:
    if name not in walk.values:
        raise UnknownError
    return walk.values.array(name).reshape(-1)[0]


def _scan(walk: Walk, node: onnx.NodeProto) -> None:
    """A ``Scan``: one step for each slice of what it goes along."""
    if _is_old_scan(walk, node):
        raise UnknownError
    about, body = onnx_node.attributes(node), next(bodies(node))
    sources, axes = _scanned(node)
    backwards = about.get("scan_input_directions") or [0] * len(sources)
    shapes = [walk.types.shape(name) for name in sources]
    if any(shape is None for shape in shapes) or not shapes:
        raise UnknownError
    known = [shape for shape in shapes if shape is not None]
    count = known[0][axes[0]]
    steps = Steps(walk, body, _states(node))
    begin = len(steps.states)
    for step in range(count):
        given: dict[str, Any] = {}
        for name, source, axis, shape, back in zip(
            steps.inputs[begin:], sources, axes, known, backwards, strict=True
        ):
            place = count - 1 - step if back else step
            given[name] = _slice(walk, source, axis, shape, place)
        steps.run(slice(0, begin), slice(0, begin), given)
        steps.stacked.append([walk.types.get(name) for name in steps.outputs[begin:]])
        if steps.settled and not any(source in walk.values for source in sources):
            steps.repeat(count - 1 - step)
            break
    hand_out(walk, node.output[:begin], steps.states)
    out_axes = about.get("scan_output_axes") or []
    stack(walk, node.output[begin:], steps.stacked, count, out_axes)


def _slice(walk: Walk, source: str, axis: int, shape: tuple[int, ...], place: int) -> Any:
    """What a step sees of a value: a part of a constant, or a type."""
    if source in walk.values and source not in walk.made:
        return source, np.take(walk.values.array(source), place, axis=axis)
    return onnx.helper.make_tensor_type_proto(walk.types.element(source), _without(shape, axis))
