"""Put another function in a function's place, for the time of a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree


@contextlib.contextmanager
def replaced(owner: Any, changes: dict[str, Any]) -> Iterator[None]:
    """Other attributes of an object inside."""
    saved = {name: owner.__dict__.get(name, replaced) for name in changes}
    for name, value in changes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is replaced:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def of_proxies(tracer: Any, original: Any) -> Callable[..., Any]:
    """A function that becomes a node where it is given a proxy."""

    def make(*args: Any, **kwargs: Any) -> Any:
        given = pytree.tree_leaves((args, kwargs))
        if not any(issubclass(type(leaf), fx.Proxy) for leaf in given):
            return original(*args, **kwargs)
        return tracer.create_proxy("call_function", original, args, kwargs)

    return make
