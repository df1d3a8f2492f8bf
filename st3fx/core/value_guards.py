"""For which calls a graph holds, if its trace read sizes, dtypes or lengths.

The trace's answers are kept with the part of the graph that they came from. For tensors of other
shapes or dtypes that part runs once, on tensors without memory, and every answer must be the same;
the decision is remembered. So a guard is never a guess at which sizes matter.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from st3fx.core.calls import same_value
from st3fx.core.graphs import CompiledGraph
from st3fx.core.purity import changes_in_place
from st3fx.core.stand_ins import Meta, meta_of
from st3fx.core.values import Evaluation

REMEMBERED = 256
"""Signatures of calls whose answer is kept; the oldest is forgotten first."""

_LOCK = threading.Lock()
_SIMPLE = (bool, int, float, str, type(None), torch.dtype, torch.device)


class Answer(NamedTuple):
    """What a trace was told about one value.

    Attributes:
        question: A key of :data:`st3fx.core.values.QUESTIONS`.
        expected: The answer, plain data.
        words: The value as an expression of the module's inputs, e.g. ``x.shape[0] > 4``.
        place: File and line of the code that asked.
    """

    question: str
    expected: Any
    words: str
    place: str

    def __str__(self) -> str:
        """``x.shape[0] > 4 is False (model.py:12)``."""
        subject = {"length": f"len({self.words})", "kind": f"type({self.words})"}
        value = getattr(self.expected, "__name__", None) or repr(self.expected)
        return f"{subject.get(self.question, self.words)} is {value} ({self.place})"


class Fact(NamedTuple):
    """Something outside of the call that traced code read.

    Attributes:
        owner: ``torch``, for a function of it, or an object that a module has.
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
        owner = "torch" if self.owner is torch else type(self.owner).__name__
        call = "" if self.args is None else f"({', '.join(map(str, self.args))})"
        return f"{owner}.{self.name}{call} is {self.expected!r} ({self.place})"

    def __reduce__(self) -> Any:
        """Modules cannot be pickled: ``torch`` goes by its name."""
        owner = "torch" if self.owner is torch else self.owner
        return _fact, (owner, *self[1:])


def _fact(owner: Any, *rest: Any) -> Fact:
    return Fact(torch if owner == "torch" else owner, *rest)


class ValueGuards:
    """The answers that one graph was traced with."""

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        answers: Sequence[Answer],
        metas: Sequence[Meta | None],
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
        self._graph = CompiledGraph(graph)
        self._tensors, self._settings = _dependencies(root, graph)
        self._known: dict[Any, bool] = {self._key([_Seen(*meta) for meta in metas if meta]): True}

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
        return self._decide(key, tensors) if known is None else known

    def words(self) -> list[str]:
        """Everything that must hold, without repetitions."""
        return list(dict.fromkeys([*map(str, self.answers), *map(str, self.facts)]))

    def _key(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """Everything that the answers could depend on."""
        return (
            *[(t.shape, t.dtype, t.device) for t in tensors],
            torch.get_default_dtype(),
            *[
                torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
                for device in ("cpu", "cuda")
            ],
            *[_seen(module, name) for module, name in self._tensors],
            *[module.__dict__.get(name) for module, name in self._settings],
        )

    def _decide(self, key: Any, tensors: Sequence[Any]) -> bool:
        with _LOCK:
            decided = self._ask(tensors)
            while len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = decided
        return decided

    def _ask(self, tensors: Sequence[Any]) -> bool:
        metas = [meta_of(tensor) for tensor in tensors]
        if None in metas:
            return False
        evaluation = Evaluation(self.root, metas)
        *nodes, output = self._graph.graph.nodes
        evaluation.run(nodes)
        asked: Any = output.args[0]
        return all(_confirms(a, evaluation, n) for a, n in zip(self.answers, asked, strict=True))


class _Seen(NamedTuple):
    """The traced call's tensors, as :meth:`ValueGuards._key` reads tensors."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _confirms(answer: Answer, evaluation: Evaluation, node: fx.Node) -> bool:
    try:
        return same_value(evaluation.answer(node, answer.question), answer.expected)
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


def pruned(graph: fx.Graph, asked: Sequence[fx.Node]) -> fx.Graph:
    """The part of ``graph`` that some nodes are computed from, as a graph that gives these nodes.

    What changes a value in place is part of it.
    """
    needed: set[fx.Node] = set()
    pending = list(asked)
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        pending += node.all_input_nodes
        pending += [user for user in node.users if changes_in_place(user, node)]
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in asked))
    return part
