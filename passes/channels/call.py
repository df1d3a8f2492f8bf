"""One operator of the graph as a rule sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from st3fx.passes.channels.fact import Fact, Ids, Kept, Slices
from st3fx.passes.channels.operand import Operand
from st3fx.passes.channels.product import Notes

_MISSING = object()


@dataclass(frozen=True)
class Call:
    """A node with what is known of its operands.

    Attributes:
        node: Calls an ATen operator.
        facts: By node, for all that came before. Operators with several results have a tuple.
        coupling: Takes in what a rule finds.
    """

    node: fx.Node
    facts: Mapping[fx.Node, Any]
    coupling: Notes
    _operands: dict[tuple[str, int], Operand] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``conv2d``."""
        return _schema(self.node.target).name

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Of the operator's schema, in order."""
        return _schema(self.node.target).parameters

    def __getitem__(self, name: str) -> Any:
        """An argument, or its default."""
        value = self.get(name, _MISSING)
        assert value is not _MISSING, f"{self.name} has no argument {name}"
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or its default; ``default`` where the overload has none of that name."""
        found = self.parameters.get(name)
        if found is None:
            return default
        if found.position < len(self.node.args):
            return self.node.args[found.position]
        return self.node.kwargs.get(name, found.default)

    def rewrite(self, name: str, value: Any) -> None:
        """Rewrite an argument in the graph."""
        position = self.parameters[name].position
        if position < len(self.node.args):
            self.node.update_arg(position, value)
        else:
            self.node.update_kwarg(name, value)

    def axis(self, name: str = "dim") -> int:
        """An argument that is a dimension of the first one, counted from the front."""
        return int(self[name]) % max(1, self.x.rank)

    def axes(self, name: str = "dim") -> set[int]:
        """An argument that is one, several or, where there are none, all dimensions."""
        given = self.get(name)
        rank = self.x.rank
        if given is None or given == []:
            return set(range(rank))
        return {int(dim) % max(1, rank) for dim in ([given] if isinstance(given, int) else given)}

    def operand(self, name: str) -> Operand:
        """A tensor that is an argument."""
        operand = self.optional(name)
        assert operand is not None
        return operand

    def optional(self, name: str) -> Operand | None:
        """The same; ``None`` where the argument is left out, or is no tensor that is known."""
        return self._operand(name, 0, self.get(name))

    def several(self, name: str) -> list[Operand]:
        """Tensors of an argument that is a list of them."""
        found = [self._operand(name, place, node) for place, node in enumerate(self[name])]
        return [operand for operand in found if operand is not None]

    def _operand(self, name: str, place: int, value: Any) -> Operand | None:
        fact = self.facts.get(value) if isinstance(value, fx.Node) else None
        if not isinstance(fact, Fact):
            return None
        if (name, place) not in self._operands:
            self._operands[name, place] = Operand(value, fact)
        return self._operands[name, place]

    def read(self) -> Iterator[tuple[Operand | None, Fact]]:
        """All tensors that the operator reads; ``None`` for one that the rule did not look at."""
        seen = set()
        for name in self.parameters:
            value = self.get(name)
            for place, node in enumerate(value if isinstance(value, list | tuple) else [value]):
                if isinstance(node, fx.Node):
                    seen.add(node)
                    for fact in facts_of(self.facts.get(node)):
                        yield self._operands.get((name, place)), fact
        for node in self.node.all_input_nodes:
            if node not in seen:
                for fact in facts_of(self.facts.get(node)):
                    yield None, fact

    @property
    def first(self) -> str:
        """Name of the first argument."""
        return next(iter(self.parameters))

    @property
    def x(self) -> Operand:
        """The first argument."""
        return self.operand(self.first)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of the result."""
        return shape_of(self.node.meta["val"])

    @property
    def dtype(self) -> torch.dtype:
        """Of the result."""
        dtype: torch.dtype = self.node.meta["val"].dtype
        return dtype

    def result(self, axes: Sequence[Ids | None], constant: Slices | None = None) -> Fact:
        """What is known of the result. An index that is the only one of its dimension stays."""
        return Fact(self.shape, tuple(axes), constant)

    def run(self, tensors: Mapping[str, Tensor]) -> Any:
        """The operator on other tensors; other arguments stay as they are."""
        found = {name: tensors.get(name, self.get(name)) for name in self.parameters}
        named = {name for name, known in self.parameters.items() if known.is_named}
        assert callable(self.node.target)
        return self.node.target(
            *(value for name, value in found.items() if name not in named),
            **{name: value for name, value in found.items() if name in named},
        )

    def afterwards(self, change: Callable[[Kept], Any]) -> None:
        """Rewrite something once it is known which channels stay."""
        self.coupling.changes.append(change)

    def fixed(self, size: Any) -> Ids:
        """New channels that stay."""
        return self.coupling.fixed(int(size), self.reason)

    @property
    def reason(self) -> str:
        """Why channels stay that this operator needs."""
        return f"{self.name} needs all of them"


@dataclass(frozen=True)
class Parameter:
    """One of an operator's, by its schema.

    Attributes:
        position: Among all of them.
        default: ``None`` where there is none.
        is_named: Whether it is given by name alone.
    """

    position: int
    default: Any
    is_named: bool


@dataclass(frozen=True)
class _Schema:
    name: str
    parameters: dict[str, Parameter]


@functools.cache
def _schema(operator: Any) -> _Schema:
    schema = operator._schema
    parameters = {
        argument.name: Parameter(position, argument.default_value, argument.kwarg_only)
        for position, argument in enumerate(schema.arguments)
    }
    return _Schema(schema.name.partition("::")[2], parameters)


def facts_of(found: Any) -> tuple[Fact, ...]:
    """What is known of a node, as a tuple: of one tensor, of several, or of none."""
    parts = found if isinstance(found, tuple) else (found,)
    return tuple(part for part in parts if isinstance(part, Fact))


def shape_of(value: Any) -> tuple[Any, ...]:
    """Sizes of a traced tensor; expressions for those that are free."""
    return tuple(size_of(size) for size in value.shape)


def size_of(size: Any) -> Any:
    """A number, or the expression of a free size."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_number else expression
    return int(size)
