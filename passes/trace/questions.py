"""What a trace asks of the values that its proxies stand for, and the guards that come of it.

Values are computed when the first question comes, for all nodes up to then in their order; a
forward that asks nothing costs nothing. What the trace of a submodule has added is taken back when
it fails.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from st3fx.errors import TraceError
from st3fx.graphs.calls import CallSpec
from st3fx.graphs.guards import Answer, Fact, ValueGuards
from st3fx.graphs.in_place import after
from st3fx.graphs.purity import DataError, Unknown, only_computes, pruned
from st3fx.graphs.values import Evaluation, is_of_data
from st3fx.passes.trace.ambient import place
from st3fx.passes.trace.proxies import NUMBER, is_known_by_value
from st3fx.passes.trace.words import Known, expression

_ISINSTANCE = builtins.isinstance
_WANTS = {"bool": "branches on", "length": "asks for the length of", "kind": "asks for the type of"}


class NumberError(TraceError):
    """What a trace was told follows from free numbers, so that it holds for these alone.

    Attributes:
        inputs: Which inputs of the graph they are.
    """

    def __init__(self, message: str, inputs: list[int]) -> None:
        super().__init__(message)
        self.inputs = inputs


class Questions:
    """Values of one trace's nodes, on demand.

    Attributes:
        answers: False while values are computed: then torch does what it always does.
        facts: What the code read of its surroundings.
        log: What the trace has read, asked and traced through, in order (see ``repeats``).
    """

    def __init__(self, root: nn.Module, spec: CallSpec) -> None:
        """Prepare; :meth:`follow` begins.

        Args:
            root: The traced module.
            spec: The traced call.
        """
        self.answers = True
        self.facts: dict[tuple[Any, ...], Fact] = {}
        self.log: list[tuple[str, Any, str]] = []
        self._root, self._metas = root, spec.metas
        self._evaluation = Evaluation(root, spec.metas, spec.readable, inside=True)
        self.follow(fx.Graph())
        self._answers: dict[tuple[fx.Node, str], tuple[Any, str]] = {}
        self._containers: set[fx.Node] = set()

    def follow(self, graph: fx.Graph) -> None:
        """Take the values of a graph that is about to grow."""
        self._graph = graph
        self._last = graph._root

    # --- values ---

    def value(self, node: fx.Node) -> Any:
        """A node's value, or :class:`Unknown`."""
        self.log.append(("look", None, ""))
        if node not in self._evaluation.values:
            self.catch_up()
        return self._evaluation.values[node]

    def catch_up(self) -> None:
        """Compute the values of all nodes up to now: what follows runs under another context."""
        pending = []
        while self._last.next is not self._graph._root:
            self._last = self._last.next
            if self._last not in self._evaluation.values:
                pending.append(self._last)
        with self.silent():
            self._evaluation.run(pending)

    def erase(self, node: fx.Node) -> None:
        """Forget the last node, which is about to be erased."""
        self._evaluation.values.pop(node, None)
        if self._last is node:
            self._last = node.prev

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Torch does what it always does inside, at its usual speed."""
        before = self.answers, builtins.isinstance
        self.answers, builtins.isinstance = False, _ISINSTANCE
        try:
            yield
        finally:
            self.answers, builtins.isinstance = before

    # --- questions ---

    def ask(self, node: fx.Node, question: str) -> Any:
        """The answer, noted as a guard.

        Raises:
            TraceError: If it depends on a tensor's data, or on what cannot be known here.
        """
        value = self.value(node)
        wants = _WANTS.get(question, "needs the number in")
        try:
            with self.silent():
                answer = self._evaluation.answer(node, question)
        except DataError as error:
            if isinstance(value, Tensor):
                raise TraceError(f"{wants} a tensor's data") from error
            raise TraceError(f"{wants} a value that {_why(value, error)}") from error
        self.log.append(("ask", node, question))
        if (node, question) not in self._answers:
            self._answers[node, question] = (answer, place())
        return answer

    def class_of(self, node: fx.Node) -> type:
        """The class of a node's value; an argument of the call is a tensor in every call."""
        if node.op == "placeholder":
            return node.meta.get(NUMBER, Tensor)  # type: ignore[no-any-return]
        if node.op == "call_function" and node.target is after:
            return self.class_of(node.args[0])  # type: ignore[arg-type]
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            owner = self._root.get_submodule(path)
            return nn.Parameter if name in owner._parameters else Tensor
        found: type = self.ask(node, "kind")
        return found

    def hash_of(self, proxy: fx.Proxy) -> int:
        """A number's or a word's hash; identity for the rest."""
        value = self.value(proxy.node)
        if not is_known_by_value(value):
            return object.__hash__(proxy)
        return hash(self.ask(proxy.node, "plain"))

    def text_of(self, proxy: fx.Proxy) -> str:
        """A device or a number in words; the proxy's own for what has no value to name."""
        if self.answers and is_known_by_value(self.value(proxy.node)):
            return str(self.ask(proxy.node, "plain"))
        return repr(proxy)

    def keys(self, node: fx.Node) -> list[Any] | None:
        """The keys of a mapping, ``None`` for anything else."""
        if node.op in ("placeholder", "get_attr") or not isinstance(self.value(node), Mapping):
            return None
        found: list[Any] = self.ask(node, "keys")
        return found

    def require_attribute(self, node: fx.Node, name: str) -> None:
        """Raise what the value would.

        Raises:
            AttributeError: If the value has no such attribute.
        """
        found = Tensor if name.startswith("__") else self.class_of(node)
        if found in (int, float) and hasattr(found, name):
            return
        if issubclass(found, Tensor) or not hasattr(self.value(node), name):
            raise AttributeError(f"'{found.__name__}' object has no attribute '{name}'")

    def note_call(self, node: fx.Node, module: nn.Module) -> None:
        """A call of a module: it may give a container, with ``None`` in it."""
        inside = type(module).__module__
        if not inside.startswith("torch.nn.") or inside.endswith((".rnn", ".activation")):
            self._containers.add(node)

    def is_none(self, root: fx.Node, item: fx.Node) -> bool:
        """Whether an item of what a module gave is ``None``."""
        if root not in self._containers:
            return False
        value = self.value(item)
        if value is None:
            self.ask(item, "kind")
        elif not isinstance(value, (Tensor, Unknown)):
            self._containers.add(item)
        return value is None

    def is_container(self, node: fx.Node) -> bool:
        """Whether a node's items are looked at for ``None``."""
        return node in self._containers

    def environment(self, owner: Any, name: str, args: tuple[Any, ...], found: Any) -> None:
        """The code asked ``owner.name(*args)``, of torch or a part of it."""
        self.facts[owner, name, args] = Fact(owner, name, args, found, place())

    # --- a trace that is repeated ---

    def known(self, node: fx.Node) -> Any:
        """A node's value, without the trace's having looked at it."""
        if node not in self._evaluation.values:
            self.catch_up()
        return self._evaluation.values[node]

    def is_of_data(self, node: fx.Node, question: str) -> bool:
        """Whether an answer followed from more than shapes and settings."""
        return is_of_data(self._evaluation.values[node], question)

    def take_values(self, pairs: Iterable[tuple[fx.Node, fx.Node]]) -> None:
        """Let nodes have the values that others have, as far as these were computed."""
        self.log.append(("look", None, ""))
        for known, node in pairs:
            self._evaluation.take(known, node)

    def repeat(self, known: fx.Node, node: fx.Node, question: str) -> None:
        """A node's answer is that of another one."""
        self.log.append(("ask", node, question))
        self._answers.setdefault((node, question), self._answers[known, question])

    def note_container(self, node: fx.Node) -> None:
        """Look at a node's items for ``None``."""
        self._containers.add(node)

    # --- the result ---

    def mark(self) -> int:
        """Count the answers so far."""
        return len(self._answers)

    def undo(self, mark: int) -> None:
        """Drop the answers since a mark."""
        while len(self._answers) > mark:
            self._answers.popitem()

    def guards(self, graph: fx.Graph) -> ValueGuards | None:
        """All answers as guards, or ``None`` if nothing was asked."""
        if not self._answers and not self.facts:
            return None
        words: Known = {}
        answers = [
            Answer(
                question,
                answer,
                expression(node, words),
                where,
                self._evaluation.reads_inputs(node, question),
            )
            for (node, question), (answer, where) in self._answers.items()
        ]
        part = pruned(graph, [node for node, _ in self._answers])
        inputs = [node for node in part.nodes if node.op == "placeholder"]
        asked = [n for n, node in enumerate(inputs) if NUMBER in node.meta and node.users]
        if asked:
            raise NumberError("needs the number in an argument", asked)
        return ValueGuards(self._root, part, answers, self._metas, [*self.facts.values()])

    def drop_unused(self, graph: fx.Graph) -> None:
        """Erase nodes that only questions needed."""
        for node in reversed(graph.nodes):
            if not node.users and only_computes(node):
                value = self._evaluation.values.get(node, _UNSEEN)
                if not isinstance(value, (Tensor, Unknown)):
                    graph.erase_node(node)


_UNSEEN = Unknown("was not asked")


def _why(value: Any, error: DataError) -> str:
    reason = value.reason if isinstance(value, Unknown) else ""
    return reason if " " in reason else str(error)


Tables = tuple[dict[Any, Any], ...]
"""What grows while a trace goes on, each in the order of addition."""


class Mark(NamedTuple):
    """Says how far a trace was."""

    last: fx.Node | None
    answers: int
    sizes: list[int]


def mark(graph: fx.Graph, questions: Questions, tables: Tables) -> Mark:
    """Where a trace is now."""
    last = next(iter(reversed(graph.nodes)), None)
    return Mark(last, questions.mark(), [len(table) for table in tables])


def undo(graph: fx.Graph, questions: Questions, tables: Tables, before: Mark) -> None:
    """Back to a mark: nodes, answers and entries since then are dropped."""
    questions.undo(before.answers)
    for table, size in zip(tables, before.sizes, strict=True):
        while len(table) > size:
            table.popitem()
    for node in reversed(graph.nodes):
        if node is before.last:
            break
        questions.erase(node)
        graph.erase_node(node)
