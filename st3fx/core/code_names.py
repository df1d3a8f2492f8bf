"""Generated code that reads modules and parameters of any name: ``class``, ``a"b``, ``ﬁ``.

torch.fx writes ``self.class`` for a module of that name, and quotes names as they are.
"""

from __future__ import annotations

import functools
import keyword
from collections.abc import Callable

from torch import fx
from torch.fx.graph import _format_target


def with_any_names(graph: fx.Graph) -> fx.Graph:
    """Let the code of a graph read its targets, whatever they are called; gives the graph."""
    rewritten = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module") and not all(
            map(_is_plain, node.target.split("."))
        ):
            rewritten[_format_target("self", node.target)] = _read("self", node.target)
    if rewritten:
        graph.on_generate_code(lambda earlier: _after(earlier, rewritten))
    return graph


def _after(
    earlier: Callable[[list[str]], list[str]] | None, rewritten: dict[str, str]
) -> Callable[[list[str]], list[str]]:
    """Change statements that read a target: ``name = self.class`` or ``name = self.class(x)``."""

    def transform(body: list[str]) -> list[str]:
        lines = body if earlier is None else earlier(body)
        return [_changed(line, rewritten) for line in lines]

    return transform


def _changed(line: str, rewritten: dict[str, str]) -> str:
    name, assigns, value = line.partition(" = ")
    for plain, right in rewritten.items():
        if assigns and (value == plain or value.startswith(f"{plain}(")):
            return f"{name} = {right}{value[len(plain) :]}"
    return line


@functools.lru_cache(maxsize=4096)
def _is_plain(part: str) -> bool:
    """Whether torch.fx writes a name as it has to be.

    It writes what is no identifier between quotes; the parser changes some letters of identifiers.
    """
    if part.isidentifier():
        return part.isascii() and not keyword.iskeyword(part)
    return part.isprintable() and not set(part) & set('"\\')


def _read(base: str, target: str) -> str:
    """The expression that reads a target."""
    for part in target.split("."):
        simple = part.isidentifier() and _is_plain(part)
        base = f"{base}.{part}" if simple else f"getattr({base}, {part!r})"
    return base


def has_plain_names(node: fx.Node) -> bool:
    """Whether the names that a node gives or asks for can stand in code: not ``f(class=x)``."""
    names = list(node.kwargs)
    if node.op == "call_function" and node.target is getattr and len(node.args) > 1:
        names.append(str(node.args[1]))
    return all(name.isidentifier() and not keyword.iskeyword(name) for name in names)
