"""Modules that repeat: what the trace of one has given is given again for the next one like it.

A deep model is the same block again and again, and a recurrence the same cell. Of each kind one is
traced; for the others its nodes are copied, with their own parameters and their own guards. What
the code of a forward does follows from what it is given and from what it reads; so a trace is
repeated only where all of that is known to be the same:

1. The module is made alike (``makes``): the same classes all the way down, children, parameters
   and buffers of the same names, shapes, dtypes and ``requires_grad``, the same sites below it. No
   hooks, no ScriptModule, and no module or tensor that has another name elsewhere (tied weights).
2. It is given values in the same places, the same one where one stood twice, and equal constants.
   Nothing but values of nodes, numbers, words and plain containers of these, which the trace has
   not changed and does not give back.
3. Every attribute that the trace read has an equal value; what it did not find on a module is not
   there either. The same holds for the plain values of globals and classes, and for what was read
   of objects (a configuration). Nothing was read whose changes no comparison would see: an
   iterator, a value that a descriptor or a cache keeps for each module, a module's ``__dict__``.
4. The trace read nothing of a module outside of the repeated one, stored nothing, entered no
   context, left no submodule a call that has sites, wrote to no parameter, asked for no data, and
   changed the shape of nothing in place; its code assigns no global.
5. Where the trace looked at a value (a size, a type): what it is given has the same shapes,
   strides, dtypes and devices, and submodules that stay calls have equal attributes, too.

Anything else is traced as ever. What was read becomes a guard of each module, and what was asked
an answer for each, as if it had been traced. A file of its own beside ``trace``, which asks it at
each call, because the conditions are one idea.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from st3fx import under_way
from st3fx.graphs.in_place import assign_data
from st3fx.graphs.regions import is_border
from st3fx.modules.hooks import is_recording
from st3fx.passes.trace.alike import (
    UnfitError,
    containers,
    emptied,
    equal,
    filled,
    flat,
    is_steady,
    makes,
    same_attributes,
    shape,
)
from st3fx.passes.trace.proxies import NUMBER
from st3fx.passes.trace.questions import Questions

_MISSING = object()

_RESHAPING = frozenset(
    {
        "unsqueeze_", "squeeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "resize_",
        "resize_as_", "set_", "as_strided_", "requires_grad_", "append", "extend", "insert", "pop",
        "clear", "update",
    }
)  # fmt: skip
"""What changes more of a value than its data; equal values of repeated nodes are one object."""


def reshapes(node: fx.Node) -> bool:
    """Whether a node changes the shape or the items of a value in place."""
    if node.op == "call_method":
        return node.target in _RESHAPING
    if node.op != "call_function":
        return False
    return node.target is assign_data or getattr(node.target, "__name__", "") in _RESHAPING


@dataclass
class Begun:
    """A call of a module that may be repeated, or traced for later ones.

    Attributes:
        name: Of the module, in the root.
        module: Itself.
        key: What must be the same for a trace to be repeated.
        inputs: The nodes that it is given, in order.
        proxies: Of these.
        last: The last node before the call.
        mark: How long the log was.
        failures: How many traces had failed.
        leaves: How many submodules with sites stayed calls.
        globals: Plain values of globals and classes.
        states: What was read of objects.
        given: Its arguments.
    """

    name: str
    module: nn.Module
    key: Any
    inputs: list[fx.Node]
    proxies: list[Any]
    last: fx.Node
    mark: int
    failures: int
    leaves: int
    globals: list[Any]
    states: list[Any]
    given: Any


@dataclass
class _Trace:
    """One trace to repeat; paths are relative to its module.

    Attributes:
        begun: The call.
        nodes: What it has made.
        reads: (path, attribute) that it found on modules.
        of_class: (path, name) that it did not find there.
        asked: (node, question).
        inlined: Paths of the modules that were traced through.
        metas: Of its inputs, if a value was looked at; else ``None``.
        containers: Those of its nodes whose items may be ``None``.
        result: What it gave, with nodes for proxies.
    """

    begun: Begun
    nodes: list[fx.Node]
    reads: list[tuple[str, str]]
    of_class: list[tuple[str, str]]
    asked: list[tuple[fx.Node, str]]
    inlined: list[str]
    metas: list[Any] | None
    containers: list[fx.Node]
    result: Any


class Repeats:
    """The traces of one trace's submodules.

    Attributes:
        used: Whether one was repeated.
    """

    def __init__(
        self,
        tracer: Any,
        root: nn.Module,
        names: Mapping[int, str],
        tensors: Mapping[int, str],
        within: Callable[[str], bool],
        *,
        on: bool = True,
    ) -> None:
        """Look at all modules of the traced one.

        Args:
            tracer: An ``IslandTracer``, which has no graph yet.
            root: The module that it traces.
            names: Id of a module -> its name.
            tensors: Id of a tensor -> its name.
            within: Whether there are sites in the module of a name.
            on: Whether anything is repeated.
        """
        self.used = False
        self._tracer, self._names = tracer, names
        self._modules: dict[str, nn.Module] = dict(root.named_modules())
        self._makes = makes(root, names, tensors, within) if on else {}
        self._count = collections.Counter(self._makes.values())
        self._known: dict[Any, list[_Trace]] = {}
        self._called: set[str] = set()
        self._failures = 0

    # --- what the tracer says ---

    def failed(self) -> None:
        """A trace has failed, and its nodes are gone."""
        self._failures += 1
        self._known.clear()

    def begin(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Begun | None:
        """A module is called that is traced through; ``None`` if its trace is kept for nothing."""
        make = self._makes.get(id(module))
        often = name in self._called
        self._called.add(name)
        if make is None or not (often or self._count[make] > 1):
            return None
        tracer = self._tracer
        with tracer.questions.silent():
            if tracer.regions.depth or tracer.writes.nodes or tracer.reads.taken.changes:
                return None
            if is_recording() or nn.modules.module._has_any_global_hook():
                return None
            if not tracer.regions.is_known():
                return None
            seen: dict[fx.Node, int] = {}
            proxies: list[Any] = []
            try:
                form = flat((args, kwargs), seen, proxies)
            except UnfitError:
                return None
            kinds = [_kind(node, tracer.questions) for node in seen]
            if None in kinds:
                return None
            return Begun(
                name, module, (make, form, tuple(kinds)), list(seen), proxies,
                next(iter(reversed(tracer.graph.nodes))), len(tracer.questions.log),
                self._failures, len(tracer.capture.leaves), tracer.reads.taken.plain_values(),
                tracer.reads.states(), (args, kwargs),
            )  # fmt: skip

    def again(self, begun: Begun | None) -> tuple[Any] | None:
        """What the module gives, in a tuple, if a trace can be repeated; else ``None``."""
        if begun is None:
            return None
        with self._tracer.questions.silent():
            for trace in self._known.get(begun.key, ()):
                if self._fits(trace, begun):
                    return (self._repeat(trace, begun),)
        return None

    def keep(self, begun: Begun | None, result: Any) -> None:
        """Keep a trace that has gone well."""
        if begun is None:
            return
        with self._tracer.questions.silent():
            try:
                trace = self._trace(begun, result)
            except UnfitError:
                return
            self._known.setdefault(begun.key, []).append(trace)

    # --- one trace to keep ---

    def _trace(self, begun: Begun, result: Any) -> _Trace:
        """What was traced since a call began.

        Raises:
            UnfitError: If it cannot be repeated.
        """
        tracer = self._tracer
        self._require_quiet(begun)
        self._require_given(begun, result)
        nodes = _since(begun.last, tracer.graph)
        self._require_own(begun, nodes)
        parts = self._log(begun)
        questions: Questions = tracer.questions
        known = {*nodes, *begun.inputs}
        for node, question in parts["ask"]:
            if node not in known:
                self._require_below(begun, node)
            if questions.is_of_data(node, question):
                raise UnfitError
        self._require_steady(begun, parts["read"])
        looked = bool(parts["look"])
        return _Trace(
            begun, nodes, parts["read"], parts["class"], parts["ask"],
            [path for path, _ in parts["inlined"]],
            [shape(questions.known(node)) for node in begun.inputs] if looked else None,
            [node for node in nodes if questions.is_container(node)],
            emptied(result, known),
        )  # fmt: skip

    def _require_quiet(self, begun: Begun) -> None:
        """A trace that has failed nowhere, and has changed nothing but its graph.

        Raises:
            UnfitError: If it is no such trace.
        """
        tracer = self._tracer
        now = (self._failures, len(tracer.capture.leaves))
        taken = tracer.reads.taken
        if now != (begun.failures, begun.leaves) or taken.changes or tracer.writes.nodes:
            raise UnfitError
        if not equal(taken.plain_values(), begun.globals) or not self._is_unchanged(begun):
            raise UnfitError
        if not equal(tracer.reads.states(), begun.states):
            raise UnfitError

    def _require_given(self, begun: Begun, result: Any) -> None:
        """A trace that has left its arguments as they were, and gives containers of its own.

        Raises:
            UnfitError: If it does not.
        """
        seen: dict[fx.Node, int] = {}
        form = flat(begun.given, seen, [])
        if form != begun.key[1] or list(seen) != begun.inputs:
            raise UnfitError
        made = containers(result)
        if len(set(made)) < len(made) or not set(made).isdisjoint(containers(begun.given)):
            raise UnfitError

    def _require_steady(self, begun: Begun, reads: list[tuple[str, str]]) -> None:
        reader = self._tracer.reads
        for path, name in reads:
            value = reader.before[id(self._at(begun.name, path))].get(name)
            if not is_steady(value, reader.follows):
                raise UnfitError

    def _log(self, begun: Begun) -> dict[str, list[tuple[Any, str]]]:
        """What a trace has read, asked and traced through; modules by their paths.

        Raises:
            UnfitError: If it has read anything of a module outside.
        """
        kinds = ("read", "class", "inlined", "ask", "look")
        parts: dict[str, list[tuple[Any, str]]] = {kind: [] for kind in kinds}
        for what, thing, name in dict.fromkeys(self._tracer.questions.log[begun.mark :]):
            if what not in parts:
                raise UnfitError
            own = thing if what in ("ask", "look") else self._below(begun, thing)
            parts[what].append((own, name))
        return parts

    def _require_own(self, begun: Begun, nodes: list[fx.Node]) -> None:
        """Nodes that the module's own trace has made of its own parameters and what it was given.

        Raises:
            UnfitError: If there is another among them.
        """
        known = {*nodes, *begun.inputs}
        for node in nodes:
            if is_border(node) or reshapes(node) or node.op in ("placeholder", "output"):
                raise UnfitError
            if NUMBER in node.meta:
                raise UnfitError
            if node.op in ("get_attr", "call_module"):
                self._require_below(begun, node)
            for used in node.all_input_nodes:
                if used not in known:
                    self._require_below(begun, used)

    def _require_below(self, begun: Begun, node: fx.Node) -> None:
        target = str(node.target)
        if node.op == "call_module":
            if not target.startswith(f"{begun.name}."):
                raise UnfitError
            return
        if node.op != "get_attr" or not target.startswith(f"{begun.name}."):
            raise UnfitError
        path, _, key = target.rpartition(".")
        module = self._modules.get(path)
        if module is None or (key not in module._parameters and key not in module._buffers):
            raise UnfitError

    def _below(self, begun: Begun, module: nn.Module) -> str:
        path = self._names.get(id(module))
        if path is None or not (path == begun.name or path.startswith(f"{begun.name}.")):
            raise UnfitError
        return path[len(begun.name) :].removeprefix(".")

    def _is_unchanged(self, begun: Begun) -> bool:
        """Whether the trace has set nothing on its modules."""
        return not any(
            self._tracer.stores.changed(f"{begun.name}.{path}" if path else begun.name)
            for path, _ in begun.module.named_modules()
        )

    # --- one trace to repeat ---

    def _fits(self, trace: _Trace, begun: Begun) -> bool:
        """Whether everything that a trace has read is the same for another module."""
        tracer = self._tracer
        for now, then in (
            (begun.globals, trace.begun.globals),
            (begun.states, trace.begun.states),
        ):
            if not equal(now[: len(then)], then):
                return False
        base, before = begun.name, tracer.reads.before
        for path, name in trace.reads:
            module, model = self._at(base, path), self._at(trace.begun.name, path)
            value = object.__getattribute__(module, "__dict__").get(name, _MISSING)
            if value is _MISSING or before[id(module)].get(name, _MISSING) is not value:
                return False
            guard = tracer.reads.guards.get((id(model), name))
            if guard is None or not equal(value, guard.expected):
                return False
        for path, name in trace.of_class:
            if name in object.__getattribute__(self._at(base, path), "__dict__"):
                return False
        if trace.metas is None:
            return True
        if not all(self._calls_alike(trace, node, base) for node in trace.nodes):
            return False
        return trace.metas == [_shape_of(tracer.questions, node) for node in begun.inputs]

    def _at(self, base: str, path: str) -> nn.Module:
        return self._modules[f"{base}.{path}" if path else base]

    def _calls_alike(self, trace: _Trace, node: fx.Node, base: str) -> bool:
        """Whether a module that stays a call has the same attributes as the one of the trace."""
        if node.op != "call_module":
            return True
        path = str(node.target)[len(trace.begun.name) + 1 :]
        left, right = self._at(trace.begun.name, path), self._at(base, path)
        pairs = zip(left.modules(), right.modules(), strict=True)
        return left is right or all(same_attributes(*pair) for pair in pairs)

    def _repeat(self, trace: _Trace, begun: Begun) -> Any:
        """Copy a trace's nodes, guards and answers for another module."""
        tracer = self._tracer
        self.used = True
        nodes = dict(zip(trace.begun.inputs, begun.inputs, strict=True))
        copier = _Copier(self, trace.begun.name, begun.name, nodes)
        for node in trace.nodes:
            copier.copy(node)
        if trace.metas is not None:
            tracer.questions.take_values([(node, nodes[node]) for node in trace.nodes])
        self._repeat_reads(trace, begun.name)
        for node, question in trace.asked:
            tracer.questions.repeat(node, copier.of(node), question)
        for node in trace.containers:
            tracer.questions.note_container(nodes[node])
        proxies = dict(zip(begun.inputs, begun.proxies, strict=True))

        def proxy(node: fx.Node) -> Any:
            own = copier.of(node)
            return proxies[own] if own in proxies else tracer.proxy(own)

        return filled(trace.result, proxy)

    def _repeat_reads(self, trace: _Trace, base: str) -> None:
        tracer = self._tracer
        for path in trace.inlined:
            tracer.inline(f"{base}.{path}" if path else base, self._at(base, path))
        for _ in trace.inlined[1:]:
            under_way.advance()
        for path, name in trace.reads:
            tracer.reads.repeat_read(self._at(base, path), name)
        for path, name in trace.of_class:
            tracer.reads.repeat_class(self._at(trace.begun.name, path), self._at(base, path), name)


class _Copier:
    """Copies nodes of one module's trace for another module."""

    def __init__(self, repeats: Repeats, old: str, new: str, nodes: dict[fx.Node, fx.Node]) -> None:
        self._tracer = repeats._tracer
        self._modules = repeats._modules
        self._old, self._new = len(old), new
        self.nodes = nodes

    def of(self, node: fx.Node) -> fx.Node:
        """What a node is for the other module; a parameter's is made when it is first used."""
        found = self.nodes.get(node)
        if found is None:
            found = self.nodes[node] = self._tracer.parameter_node(self._name(node), node)
        return found

    def _name(self, node: fx.Node) -> str:
        return self._new + str(node.target)[self._old :]

    def copy(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self.of(node)
            return
        tracer = self._tracer
        is_call = node.op == "call_module"
        made = tracer.graph.create_node(
            node.op,
            self._name(node) if is_call else node.target,
            fx.node.map_arg(node.args, self.of),
            fx.node.map_arg(node.kwargs, self.of),
            type_expr=node.type,
        )
        tracer.writes.note(made)
        if is_call:
            tracer.questions.note_call(made, self._modules[made.target])
        self.nodes[node] = made


def _kind(node: fx.Node, questions: Questions) -> str | None:
    """What a trace may ask of an input without a look at its value; ``None`` for one to trace."""
    if NUMBER in node.meta or node.op == "get_attr" or questions.is_container(node):
        return None
    return "placeholder" if node.op == "placeholder" else "value"


def _since(last: fx.Node, graph: fx.Graph) -> list[fx.Node]:
    found = []
    node = last.next
    while node is not graph._root:
        found.append(node)
        node = node.next
    return found


def _shape_of(questions: Questions, node: fx.Node) -> Any:
    try:
        return shape(questions.known(node))
    except UnfitError:
        return None
