"""Proxies that answer: they stand for a value in a trace, and know it when code must know.

Arithmetic on sizes makes nodes, so that the graph serves other sizes. Only where Python needs the
number itself (a branch, ``int()``, ``range``, ``len``, an iteration) the tracer is asked; it finds
the value and notes the answer as a guard.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from st3fx.errors import TraceError
from st3fx.graphs import in_place
from st3fx.modules.same import is_value

NUMBER = "number"
"""Mark of a placeholder for a free number: its type."""

_GRADIENTS = frozenset({"grad", "grad_fn"})
"""May be ``None``, which a proxy cannot pretend to be."""


_OWN = frozenset({"tracer", "node", "root", "attr", "_node"})
"""Attributes of proxies themselves."""


class Asking:
    """What both kinds of proxies do where Python wants a value."""

    node: fx.Node
    tracer: Any

    def __int__(self) -> int:
        """The number, as a guard."""
        return int(self.tracer.questions.ask(self.node, "int"))

    def __float__(self) -> float:
        """The number, as a guard."""
        return float(self.tracer.questions.ask(self.node, "float"))

    def __index__(self) -> int:
        """The number, as a guard."""
        return int(self.tracer.questions.ask(self.node, "index"))

    def __len__(self) -> int:
        """The length, as a guard."""
        return int(self.tracer.questions.ask(self.node, "length"))

    def __hash__(self) -> int:
        """A value's, as a guard; anything else is told apart by identity."""
        return int(self.tracer.questions.hash_of(self))

    def __str__(self) -> str:
        """A word for a device, a dtype or a number, as a guard; else the node's name."""
        return str(self.tracer.questions.text_of(self))

    def __iadd__(self, other: Any) -> Any:
        """Add in place, as the model does: ``y += x`` of torch.fx would be a new tensor."""
        return self._in_place(in_place.iadd, other)

    def __isub__(self, other: Any) -> Any:
        """As ``__iadd__``."""
        return self._in_place(in_place.isub, other)

    def __imul__(self, other: Any) -> Any:
        """As ``__iadd__``."""
        return self._in_place(in_place.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        """As ``__iadd__``."""
        return self._in_place(in_place.itruediv, other)

    def _in_place(self, operation: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __setattr__(self, name: str, value: Any) -> None:
        """``weight.data = ...`` is a node; any other attribute a graph would lose.

        Raises:
            TraceError: But for ``data`` and a proxy's own attributes.
        """
        if name == "data":
            self.tracer.assign(self, value)
        elif name in _OWN:
            object.__setattr__(self, name, value)
        else:
            raise TraceError(f"sets .{name} of a tensor while it runs")

    def __setitem__(self, index: Any, value: Any) -> None:
        """A node that writes."""
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __getattr__(self, name: str) -> Any:
        """An attribute that the value has."""
        if name in _GRADIENTS:
            raise TraceError(f"reads {name}")
        if not hasattr(Tensor, name) or NUMBER in self.node.meta:
            self.tracer.questions.require_attribute(self.node, name)
        return self.tracer.unless_none(AttributeProxy(self, name))  # type: ignore[arg-type]


class ValueProxy(Asking, fx.Proxy):
    """Stands for the value of a node."""

    __hash__ = Asking.__hash__


class AttributeProxy(Asking, fx.proxy.Attribute):
    """An attribute of a proxy; its node is made when it is used."""

    __hash__ = Asking.__hash__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A method's call; the contents of a mapping are listed."""
        if self.attr in ("items", "values", "keys") and not args:
            names = self.tracer.questions.keys(self.root.node)
            if names is not None:
                return _listed(self.attr, self.root, names)
        return fx.proxy.Attribute.__call__(self, *args, **kwargs)


def _listed(what: str, mapping: Any, names: list[Any]) -> list[Any]:
    if what == "keys":
        return names
    values = [mapping[name] for name in names]
    return values if what == "values" else list(zip(names, values, strict=True))


def iterated(proxy: Any, value: Any, length: int) -> Iterator[Any]:
    """What iterating over a value gives, as proxies; ``length`` of them."""
    if isinstance(value, Mapping):
        return iter(list(value))
    if isinstance(value, Tensor):
        proxy = proxy.unbind(0)  # as torch does: the same gradients
    return iter([proxy[index] for index in range(length)])


def is_known_by_value(value: Any) -> bool:
    """Whether two such values are one key of a dict when they are equal."""
    return is_value(value) and not isinstance(value, set)
