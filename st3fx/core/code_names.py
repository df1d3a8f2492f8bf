"""Generated code that reads modules and parameters of any name: ``class``, ``a"b``, ``ﬁ``.

torch.fx writes ``self.class`` for a module of that name, and quotes names as they are.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable

from torch import fx
from torch.fx.graph import _format_target


def with_any_names(graph: fx.Graph) -> fx.Graph:
    """Let the code of a graph read its targets, whatever they are called; gives the graph."""
    rewritten = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            plain, right = _format_target("self", node.target), _read("self", node.target)
            if plain != right:
                rewritten[plain] = right
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


def _read(base: str, target: str) -> str:
    """The expression that reads a target; the parser would write some letters in another way."""
    for part in target.split("."):
        plain = part.isidentifier() and part.isascii() and not keyword.iskeyword(part)
        base = f"{base}.{part}" if plain else f"getattr({base}, {part!r})"
    return base


def has_plain_names(node: fx.Node) -> bool:
    """Whether the names that a node gives or asks for can stand in code: not ``f(class=x)``."""
    names = list(node.kwargs)
    if node.op == "call_function" and node.target is getattr and len(node.args) > 1:
        names.append(str(node.args[1]))
    return all(name.isidentifier() and not keyword.iskeyword(name) for name in names)
