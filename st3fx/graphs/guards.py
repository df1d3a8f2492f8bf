"""For which calls a graph holds, if its trace read sizes, dtypes or lengths.

The trace's answers are kept with the part of the graph that they came from. For tensors of other
shapes or dtypes that part runs once, on tensors without memory, and every answer must be the same;
the decision is remembered. So a guard is never a guess at which sizes matter. What follows from the
data of a call's integers (whether a mask has a gap) is computed anew in each call, by itself.

What a trace was told: the answers and readings that its graph holds for.
"""

from __future__ import annotations

import copy
import importlib
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from st3fx.graphs.graph import KeptGraph
from st3fx.graphs.purity import DataProgram, readable
from st3fx.graphs.regions import unwound
from st3fx.graphs.values import QUESTIONS, Evaluation
from st3fx.modules.same import Meta, meta_of, same_value
from st3fx.process_lock import ProcessLock


class Answer(NamedTuple):
    """What a trace was told about one value.

    Attributes:
        question: A key of :data:`st3fx.graphs.values.QUESTIONS`.
        expected: The answer, plain data.
        words: The value as an expression of the module's inputs, e.g. ``x.shape[0] > 4``.
        place: File and line of the code that asked.
        of_data: Whether it follows from the data of the call's tensors.
    """

    question: str
    expected: Any
    words: str
    place: str
    of_data: bool = False

    def __str__(self) -> str:
        """``x.shape[0] > 4 is False (model.py:12)``."""
        subject = {"length": f"len({self.words})", "kind": f"type({self.words})"}
        value = getattr(self.expected, "__name__", None) or repr(self.expected)
        kind = ", looked at in each call" if self.of_data else ""
        return f"{subject.get(self.question, self.words)} is {value} ({self.place}){kind}"


class Fact(NamedTuple):
    """Something outside of the call that traced code read.

    Attributes:
        owner: ``torch`` or a part of it, for a function there, or an object that a module has.
        name: The function, or the attribute.
        args: What the function was called with; ``None`` for an attribute.
        expected: What it gave.
        place: File and line of the code that read it.
    """

    owner: Any
    name: str
    args: tuple[Any, ...] | None
    expected: Any
    place: str

    def holds(self) -> bool:
        """Whether it gives the same now."""
        found = getattr(self.owner, self.name, None)
        if self.args is not None:
            found = found(*self.args)  # type: ignore[misc]
        return same_value(found, self.expected)

    def __str__(self) -> str:
        """``BertConfig.use_cache is False (model.py:12)``."""
        owner = type(self.owner).__name__
        if isinstance(self.owner, types.ModuleType):
            owner = self.owner.__name__
        call = "" if self.args is None else f"({', '.join(map(str, self.args))})"
        return f"{owner}.{self.name}{call} is {self.expected!r} ({self.place})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Fact:
        """For a copy of the model."""
        if isinstance(self.owner, types.ModuleType):
            return self
        owner, args, expected = (_copied(x, memo) for x in (self.owner, self.args, self.expected))
        return Fact(owner, self.name, args, expected, self.place)

    def __reduce__(self) -> Any:
        """Modules cannot be pickled: they go by their names."""
        if isinstance(self.owner, types.ModuleType):
            return _of_module, (self.owner.__name__, *self[1:])
        return Fact, tuple(self)


def _copied(thing: Any, memo: dict[int, Any]) -> Any:
    """A deep copy, or the thing itself if it has none: a model has no such part, a library may."""
    known = set(memo)
    try:
        return copy.deepcopy(thing, memo)
    except TypeError:  # a context variable, say
        for half in set(memo) - known:
            del memo[half]
        return thing


def _of_module(name: str, *rest: Any) -> Fact:
    return Fact(importlib.import_module(name), *rest)


REMEMBERED = 256
"""Signatures of calls whose answer is kept; the oldest is forgotten first."""

_LOCK = ProcessLock()
_SIMPLE = (bool, int, float, str, type(None), torch.dtype, torch.device)


class ValueGuards:
    """The answers that one graph was traced with."""

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        answers: Sequence[Answer],
        metas: Sequence[Meta | float | None],
        facts: Sequence[Fact] = (),
    ) -> None:
        """Prepare.

        Args:
            root: The graph's module.
            graph: What the answers come from; its output is a tuple of the asked values.
            answers: One for each of them.
            metas: The traced call's tensors, for which the answers hold.
            facts: What else must hold.
        """
        self.root = root
        self.answers = tuple(answers)
        self.facts = tuple(facts)
        self._graph = KeptGraph(graph)
        self._tensors, self._settings = _dependencies(root, graph)
        self._known: dict[Any, Decision] = {}
        if not any(answer.of_data for answer in answers):
            seen = [_Seen(*meta) for meta in metas if isinstance(meta, Meta)]
            self._known[self._key(seen)] = _always

    def hold(self, tensors: Sequence[Any]) -> bool:
        """Whether the graph answers a call with these tensors."""
        if not all(fact.holds() for fact in self.facts):
            return False
        if not self.answers:
            return True
        if torch.compiler.is_compiling():
            return False  # a compiler could not follow; it gets the module's own forward
        key = self._key(tensors)
        try:
            known = self._known.get(key)
        except TypeError:  # a setting has become a list
            return False
        return (known or self._decide(key, tensors))(tensors)

    def words(self) -> list[str]:
        """Everything that must hold, without repetitions."""
        return list(dict.fromkeys([*map(str, self.answers), *map(str, self.facts)]))

    def _key(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """Everything that the answers could depend on."""
        return (
            *[(t.shape, t.dtype, t.device) for t in tensors if not isinstance(t, int | float)],
            torch.get_default_dtype(),
            *[
                torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
                for device in ("cpu", "cuda")
            ],
            *[_seen(module, name) for module, name in self._tensors],
            *[module.__dict__.get(name) for module, name in self._settings],
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies decide anew."""
        return {**self.__dict__, "_known": {}}

    def _decide(self, key: Any, tensors: Sequence[Any]) -> Decision:
        with _LOCK:
            decided = self._ask(tensors)
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = decided
        return decided

    def _ask(self, tensors: Sequence[Any]) -> Decision:
        # No answer follows from a free number: the trace has seen to that.
        metas = [t if isinstance(t, int | float) else meta_of(t) for t in tensors]
        if None in metas:
            return _never
        evaluation = Evaluation(self.root, metas, [*map(readable, tensors)])
        *nodes, output = self._graph.graph.nodes
        with unwound():
            evaluation.run(nodes)
        asked: Any = output.args[0]
        checks = []
        for answer, node in zip(self.answers, asked, strict=True):
            if evaluation.reads_inputs(node, answer.question):
                checks.append((answer, node))
            elif not _confirms(answer, evaluation.answer, node):
                return _never
        if not checks:
            return _always
        return _DataCheck(evaluation.program, tuple(checks))


Decision = Callable[[Sequence[Any]], bool]
"""Of calls with the same shapes, dtypes and settings: for which of their tensors a graph holds."""


def _always(tensors: Sequence[Any]) -> bool:
    return True


def _never(tensors: Sequence[Any]) -> bool:
    return False


@dataclass(frozen=True)
class _DataCheck:
    """Computes what was asked from the data of a call's tensors."""

    program: DataProgram
    checks: tuple[tuple[Answer, fx.Node], ...]

    def __call__(self, tensors: Sequence[Any]) -> bool:
        """Whether all answers are the same."""
        looked_at = map(readable, self.program.read(tensors))
        if (
            not all(tensor is not None for tensor in looked_at)
            or torch._C._get_tracing_state() is not None
        ):
            return False  # a tracer would keep the answer for good
        known: list[Any] = []

        def answer(node: fx.Node, question: str) -> Any:
            return QUESTIONS[question](self.program.data(node, known, tensors))

        with torch.no_grad():
            return all(_confirms(expected, answer, node) for expected, node in self.checks)


class _Seen(NamedTuple):
    """The traced call's tensors, as :meth:`ValueGuards._key` reads tensors."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _confirms(expected: Answer, answer: Callable[[fx.Node, str], Any], node: fx.Node) -> bool:
    try:
        return same_value(answer(node, expected.question), expected.expected)
    except Exception:  # noqa: BLE001 - a question that the value refuses is another answer
        return False


def _seen(module: nn.Module, name: str) -> Any:
    """What the answers could depend on in a parameter or buffer."""
    tensor: Tensor | None = module._parameters.get(name)
    if tensor is None:
        tensor = module._buffers.get(name)
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


Place = tuple[nn.Module, str]


def _dependencies(root: nn.Module, graph: fx.Graph) -> tuple[list[Place], list[Place]]:
    """Tensors, and simple settings of called modules, that a graph's values may depend on."""
    tensors: dict[Place, None] = {}
    settings: dict[Place, None] = {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "get_attr":
            path, _, name = target.rpartition(".")
            tensors[root.get_submodule(path), name] = None
        elif node.op == "call_module":
            for module in root.get_submodule(target).modules():
                for name in (*module._parameters, *module._buffers):
                    tensors[module, name] = None
                for name, value in module.__dict__.items():
                    if isinstance(value, _SIMPLE):
                        settings[module, name] = None
    return list(tensors), list(settings)
