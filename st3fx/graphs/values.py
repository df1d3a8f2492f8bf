"""What a graph's nodes hold in a call: sizes, flags and lengths, on tensors that have no memory.

A tensor is a ``FakeTensor``: it answers for its shape, dtype and device, and operators on it
compute shapes alone. Nothing of the model is touched: modules run as private copies on fake
tensors, and only operators known to have no side effects run at all.
"""

from __future__ import annotations

import contextlib
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from st3fx.graphs.code import map_leaves
from st3fx.graphs.purity import DataError, DataProgram, Unknown, asks_memory, is_pure, may_write_to
from st3fx.graphs.regions import is_border
from st3fx.modules.marks import stored
from st3fx.modules.same import Meta, StandIns, fake, is_torchs
from st3fx.modules.state import preserved_rng


class _UnknownInputError(Exception):
    """Carries an :class:`Unknown` from a node's inputs to the node."""


class Evaluation:
    """The values of a graph's nodes in one call."""

    def __init__(
        self,
        root: nn.Module,
        metas: Sequence[Meta | float | None],
        tensors: Sequence[Tensor | None] = (),
        *,
        inside: bool = False,
    ) -> None:
        """Prepare; :meth:`run` computes.

        Args:
            root: The graph's module; only read.
            metas: The call's tensors, and its free numbers, in the order of the placeholders.
            tensors: Those of them whose data may be looked at, ``None`` for the others.
            inside: Whether nodes come while their regions are open, so that these are not entered.
        """
        self._inside = inside
        self.values: dict[fx.Node, Any] = {}
        self._root = root
        self._metas = iter(metas)
        self._tensors = tensors
        self._inputs: dict[fx.Node, int] = {}
        self._written: set[int] = set()
        self._versions: dict[fx.Node, list[int]] = {}
        self.program = DataProgram(self.values, self._inputs, self._is_written)
        self._placeholders = 0
        self._mode: FakeTensorMode | None = None  # takes seconds to import, the first time
        self._stand_ins = StandIns()
        self._data: list[Any] = []

    def run(self, nodes: Iterable[fx.Node]) -> None:
        """Compute the values of further nodes, in their order."""
        if self._mode is None:
            self._mode = FakeTensorMode()
        with _disable_current_modes(), _unlogged(), self._mode:
            for node in nodes:
                self.values[node] = self._value(node)
                self._note(node)

    def answer(self, node: fx.Node, question: str) -> Any:
        """The answer to one of :data:`QUESTIONS`.

        Data that are made of sizes, constants and the call's integers are computed.

        Raises:
            DataError: If it depends on other data: activations, weights, random numbers.
        """
        value = self.values[node]
        with _disable_current_modes(), torch.no_grad():
            if is_of_data(value, question):
                self.program.add(node)
                value = self.program.data(node, self._data, self._tensors)
            return QUESTIONS[question](value)

    def reads_inputs(self, node: fx.Node, question: str) -> bool:
        """Whether an answer follows from the data of the call's tensors."""
        try:
            with _disable_current_modes(), torch.no_grad():
                return is_of_data(self.values[node], question) and self.program.reads(node)
        except DataError:
            return False

    def take(self, known: fx.Node, node: fx.Node) -> None:
        """Let a node have the value of another one, if that is known."""
        if known in self.values and node not in self.values:
            self.values[node] = self.values[known]
            self._note(node)
            self._versions[node] = self._versions[known]

    def _note(self, node: fx.Node) -> None:
        """Keep which placeholders can be read, and what a node may have written to."""
        if node.op == "placeholder":
            number = self._placeholders
            self._placeholders += 1
            if number < len(self._tensors) and self._tensors[number] is not None:
                self._inputs[node] = number
        elif isinstance(self.values[node], Unknown):
            for changed in may_write_to(node):
                self._written.update(map(_storage, _tensors(self.values[changed])))
        self._versions[node] = [tensor._version for tensor in _tensors(self.values[node])]

    def _is_written(self, node: fx.Node) -> bool:
        """Whether a value was written to since it was made, or may have been."""
        tensors = _tensors(self.values[node])
        if [tensor._version for tensor in tensors] != self._versions[node]:
            return True
        return not self._written.isdisjoint(map(_storage, tensors))

    def _value(self, node: fx.Node) -> Any:
        try:
            args, kwargs = map_leaves([node.args, node.kwargs], self._known)
            return self._compute(node, args, kwargs)
        except _UnknownInputError as unknown:
            return unknown.args[0]
        except Exception as error:  # noqa: BLE001 - whatever an operator raises on such tensors
            return Unknown(type(error).__name__)

    def _known(self, leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        value = self.values[leaf]
        if isinstance(value, Unknown):
            raise _UnknownInputError(value)
        return value

    def _compute(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            meta = next(self._metas)
            if isinstance(meta, int | float):
                return meta
            return Unknown("is no plain tensor") if meta is None else fake(meta)
        if node.op == "get_attr":
            found = _attribute(self._root, str(node.target))
            return pytree.tree_map_only(Tensor, self._stand_ins.tensor, found)
        if asks_memory(node):
            return Unknown("depends on memory or gradients")
        if node.op == "call_module":
            return self._call(str(node.target), args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if self._inside and is_border(node):
            return None
        if not is_pure(node.target):
            return Unknown(f"comes from {getattr(node.target, '__name__', 'a function')}")
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _call(self, name: str, args: Any, kwargs: Any) -> Any:
        """Call a private copy of a module, whose own state stays what it is."""
        module = self._root.get_submodule(name)
        with contextlib.nullcontext() if is_torchs(module) else preserved_rng():
            return self._stand_ins.module(module)(*args, **kwargs)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """A size that an operator refuses is no news: the model's own forward will say it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    """Where a tensor lies: what shares its memory may change it."""
    strided = tensor.layout is torch.strided
    return int(tensor.untyped_storage()._cdata) if strided else id(tensor)


def _attribute(root: nn.Module, target: str) -> Any:
    path, _, name = target.rpartition(".")
    return stored(root.get_submodule(path), name)


# --- questions that Python asks a value; the answers are plain data ---


def kind(value: Any) -> type:
    """The class that a model's code sees."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter
    return Tensor if isinstance(value, Tensor) else type(value)


def keys(value: Any) -> list[Any]:
    """The keys of a mapping."""
    return list(value)


def plain(value: Any) -> Any:
    """A number, a string and the like, as it is."""
    return value


OF_DATA = ("bool", "int", "float", "index")
"""Questions that a tensor answers by its data."""


def is_of_data(value: Any, question: str) -> bool:
    """Whether a question asks for more than what is known of a value without data."""
    return isinstance(value, Unknown) or (isinstance(value, Tensor) and question in OF_DATA)


QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "bool": bool, "int": int, "float": float, "index": operator.index, "length": len,
    "kind": kind, "keys": keys, "plain": plain,
}  # fmt: skip
"""By name, as guards keep them."""
