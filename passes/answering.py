"""A tracer whose proxies answer where Python needs a value."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx

from st3fx.passes.asked import Asked
from st3fx.passes.proxies import AttributeProxy, ValueProxy, iterated


class AnsweringTracer(fx.Tracer):
    """What ``torch.fx.Tracer`` asks of a tracer about its proxies.

    Attributes:
        asked: Knows the values, and keeps each answer as a guard.
    """

    asked: Asked

    def proxy(self, node: fx.Node) -> ValueProxy:
        """Stands for a node's value."""
        return ValueProxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """A node and its proxy; ``None`` itself for an item that is ``None``."""
        proxy = super().create_proxy(*args, **kwargs)
        node = proxy.node
        if node.op == "call_function" and node.target is operator.getitem:
            root = node.args[0]
            if isinstance(root, fx.Node) and self.asked.is_none(root, node):
                return None
        return proxy

    def unless_none(self, proxy: AttributeProxy) -> Any:
        """An attribute, or ``None`` itself where a module gave that."""
        root = proxy.root.node
        if self.asked.is_container(root) and self.asked.is_none(root, proxy.node):
            return None
        return proxy

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a value, as proxies."""
        keys = self.asked.keys(obj.node)
        length = len(keys) if keys is not None else self.asked.ask(obj.node, "length")
        return iterated(obj, self.asked.value(obj.node), length)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a value that is not a tensor's data."""
        return bool(self.asked.ask(obj.node, "bool"))

    def keys(self, obj: fx.Proxy) -> Any:
        """The keys of a mapping."""
        found = self.asked.keys(obj.node)
        return super().keys(obj) if found is None else found
