"""One operator of the graph as a rule sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from st3fx.passes.channels.coupling import Coupling
from st3fx.passes.channels.fact import Axes, Fact, Slices

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
    coupling: Coupling

    @property
    def schema(self) -> torch.FunctionSchema:
        """Of the operator."""
        assert isinstance(self.node.target, torch._ops.OpOverload)
        return self.node.target._schema

    @property
    def name(self) -> str:
        """``conv2d``."""
        return self.schema.name.partition("::")[2]

    def __getitem__(self, name: str) -> Any:
        """An argument, or its default."""
        value = self.get(name, _MISSING)
        assert value is not _MISSING, f"{self.schema.name} has no argument {name}"
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or its default; ``default`` where the overload has none of that name."""
        for position, argument in enumerate(self.schema.arguments):
            if argument.name == name:
                if position < len(self.node.args):
                    return self.node.args[position]
                return self.node.kwargs.get(name, argument.default_value)
        return default

    def set(self, name: str, value: Any) -> None:
        """Rewrite an argument in the graph."""
        names = [argument.name for argument in self.schema.arguments]
        if names.index(name) < len(self.node.args):
            self.node.update_arg(names.index(name), value)
        else:
            self.node.update_kwarg(name, value)

    def fact(self, name: str) -> Fact:
        """What is known of a tensor that is an argument."""
        fact = self.optional(name)
        assert fact is not None
        return fact

    def optional(self, name: str) -> Fact | None:
        """The same; ``None`` where the argument is left out or is no tensor."""
        value = self.get(name)
        fact = self.facts.get(value) if isinstance(value, fx.Node) else None
        return fact if isinstance(fact, Fact) else None

    @property
    def operand(self) -> str:
        """Name of the first argument."""
        return self.schema.arguments[0].name

    @property
    def x(self) -> Fact:
        """The first argument."""
        return self.fact(self.operand)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of the result."""
        return shape_of(self.node.meta["val"])

    def result(self, axes: Axes, constant: Slices | None = None) -> Fact:
        """What is known of the result. An index that is the only one of its dimension stays."""
        shape = self.shape
        assert len(axes) == len(shape), f"{self.node}: {len(axes)} axes of {shape}"
        return Fact(shape, axes, constant)

    def run(self, tensors: Mapping[str, Tensor]) -> Any:
        """The operator on other tensors; other arguments stay as they are."""
        found = {a.name: tensors.get(a.name, self.get(a.name)) for a in self.schema.arguments}
        positional = [found[a.name] for a in self.schema.arguments if not a.kwarg_only]
        named = {a.name: found[a.name] for a in self.schema.arguments if a.kwarg_only}
        assert callable(self.node.target)
        return self.node.target(*positional, **named)

    def pin(self, name: str, *dims: int) -> None:
        """Let the channels of an argument stay: all, or those of some dimensions."""
        fact = self.optional(name)
        if fact is not None:
            for dim in dims or range(fact.rank):
                self.coupling.pin(fact.axes[dim], self.reason)

    @property
    def reason(self) -> str:
        """Why channels stay that this operator pins."""
        return f"{self.name} needs all of them"


def shape_of(value: Any) -> tuple[Any, ...]:
    """Sizes of a traced tensor; expressions for those that are free."""
    return tuple(size_of(size) for size in value.shape)


def size_of(size: Any) -> Any:
    """A number, or the expression of a free size."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_number else expression
    return int(size)
