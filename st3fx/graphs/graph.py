"""Captured graphs: code that runs with a module as ``self``, and when it may run.

The graphs' code looks up parameters and children at each call, so that they never go stale.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from st3fx.graphs.calls import CallSpec
from st3fx.graphs.code import from_portable, to_portable, with_any_names
from st3fx.graphs.definitions import Definitions
from st3fx.graphs.regions import is_autocast_border, is_border, unwound
from st3fx.modules.hooks import is_hooked
from st3fx.modules.marks import SITES, latent_name, stored
from st3fx.modules.same import same_value


@fx.wrap
def ordered_dict(items: list[list[Any]]) -> collections.OrderedDict[Any, Any]:
    """An ``OrderedDict`` as a node, where a forward returns one."""
    return collections.OrderedDict((key, value) for key, value in items)


def find_class(module: str, name: str) -> Any:
    """A class as a node, by its names."""
    return operator.attrgetter(name)(importlib.import_module(module))


def rebuild(kind: type, state: dict[str, Any]) -> Any:
    """An object as a node, where a forward returns one that it has made."""
    made: Any = kind.__new__(kind)  # type: ignore[call-overload]
    made.__dict__.update(state)
    return made


class Guard(NamedTuple):
    """An attribute that traced code read, and the value that it saw."""

    module: nn.Module
    attribute: str
    expected: Any


_WITHOUT_ITEMS = frozenset({bool, int, float, str, type(None)})
"""Types of most attributes: the same object needs no further look."""


class KeptGraph:
    """An fx graph that never changes again, for its nodes: copies share it, pickles have it."""

    def __init__(self, graph: fx.Graph) -> None:
        """Keep ``graph``."""
        self.graph = graph

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptGraph:
        """Copies share the graph."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pickled as plain data, without tensors."""
        return {"nodes": to_portable(self.graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the nodes again."""
        self.graph = from_portable(state["nodes"])


class CompiledGraph(KeptGraph):
    """Such a graph as a function of (module, *tensors)."""

    def __init__(self, graph: fx.Graph, latent: frozenset[str] = frozenset()) -> None:
        """Compile ``graph``.

        Args:
            graph: Its targets are relative to the module.
            latent: Targets that are sites: the code reads their latent weights, which the plain
                attributes are not.
        """
        super().__init__(graph)
        self.latent = latent
        self._function = _compile(graph, latent)

    def __call__(self, module: nn.Module, *tensors: Any) -> Any:
        """Run the graph's code with ``module`` as ``self``."""
        return self._function(module, *tensors)

    def __getstate__(self) -> dict[str, Any]:
        """With the names of latent weights."""
        return {**super().__getstate__(), "latent": sorted(self.latent)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile the code again."""
        super().__setstate__(state)
        self.latent = frozenset(state["latent"])
        self._function = _compile(self.graph, self.latent)


def _compile(graph: fx.Graph, latent: frozenset[str]) -> Callable[..., Any]:
    """The function of a graph's code, which reads sites by the names of their latent weights."""
    with _renamed(graph, latent):
        module = fx.GraphModule(_skeleton(graph), with_any_names(graph))
    function: Callable[..., Any] = type(module).forward
    return function


@contextlib.contextmanager
def _renamed(graph: fx.Graph, latent: frozenset[str]) -> Iterator[None]:
    """For the time of writing code: a copy of the graph takes longer than its code."""
    reads = [node for node in graph.nodes if node.op == "get_attr" and node.target in latent]
    plain = [node.target for node in reads]
    for node in reads:
        path, _, name = node.target.rpartition(".")
        node.target = f"{path}.{latent_name(name)}".lstrip(".")
    try:
        yield
    finally:
        for node, target in zip(reads, plain, strict=True):
            node.target = target


def _skeleton(graph: fx.Graph) -> nn.Module:
    """A module that has every target of ``graph`` and nothing else."""
    root, nothing = nn.Module(), nn.Module()
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        *path, name = node.target.split(".")
        owner = root
        for part in path:
            if owner._modules.get(part, nothing) is nothing:
                owner._modules[part] = nn.Module()
            owner = owner._modules[part]  # type: ignore[assignment]
        if node.op == "call_module":
            owner._modules.setdefault(name, nothing)
        else:
            owner._parameters[name] = _NO_VALUES
    return root


_NO_VALUES = nn.Parameter(torch.empty(0), requires_grad=False)


def _containers(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The lists and dicts of modules that lie in modules: a forward reads what they hold."""
    held = [child for module in modules for child in module._modules.values()]
    own = [child for child in held if isinstance(child, nn.ModuleList | nn.ModuleDict)]
    return [*own, *(_containers(own) if own else ())]


class Variant:
    """One graph of an island: for one structure of calls, under its guards."""

    def __init__(
        self,
        mode: str,
        spec: CallSpec,
        graph: fx.Graph,
        guards: Sequence[Guard],
        modules: Sequence[nn.Module],
        stores: Sequence[str] = (),
        latent: frozenset[str] = frozenset(),
        marked: Sequence[tuple[nn.Module, str]] = (),
        definitions: Definitions | None = None,
    ) -> None:
        """Compile a graph.

        Args:
            mode: ``train``, ``eval``, or ``both``; for display.
            spec: The calls that it answers.
            graph: Placeholders are the call's tensors; other targets are relative to the module.
            guards: What must hold.
            modules: The module itself, then those whose calls the graph replaces.
            stores: Relative names of attributes that a call sets; with any, the graph gives the
                output and a list of their values.
            latent: Relative names of the sites' parameters.
            marked: The sites that it has operators for, as module and parameter.
            definitions: What must be the same on classes and in globals.
        """
        self.mode = mode
        self.spec = spec
        self.run = CompiledGraph(graph, latent)
        self._has_regions = any(map(is_border, graph.nodes))
        self._has_autocast = any(map(is_autocast_border, graph.nodes))
        self.guards = tuple(guards)
        self.definitions = definitions or Definitions()
        self.marked = tuple(marked)
        self.modules = tuple(modules)
        self.holders = [*self.modules, *_containers(self.modules)]
        self.children = [[*module._modules.values()] for module in self.holders]
        self.replaced = [module.__dict__.get("forward") for module in self.modules]
        places = [name.rpartition(".") for name in stores]
        self.stores = [(self.modules[0].get_submodule(path), key) for path, _, key in places]

    def __call__(self, tensors: Sequence[Any]) -> Any:
        """Run the graph, and set the attributes that the module's own forward sets."""
        with unwound() if self._has_regions else contextlib.nullcontext():
            output = self.run(self.modules[0], *tensors)
        if self.stores:
            output, values = output
            for (owner, key), value in zip(self.stores, values, strict=True):
                setattr(owner, key, value)
        return output

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The graph's inputs for a call, or ``None`` if the graph does not apply to it."""
        if self._has_autocast and torch.compiler.is_compiling():
            return None  # a compiler follows ``with`` alone; it gets the module's own forward
        for module, attribute, expected in self.guards:
            value = module.__dict__.get(attribute)
            at_once = value is expected and type(expected) in _WITHOUT_ITEMS
            if not at_once and not same_value(value, expected):
                return None
        if self._ended() or self._rebuilt() or self._hooked() or self._wrapped():
            return None
        if not self.definitions.hold():
            return None
        return self.spec.tensors(args, kwargs)

    def _ended(self) -> bool:
        """Whether a site has been dropped, or another parameter assigned to it."""
        return any(name not in module.__dict__[SITES] for module, name in self.marked)

    def _rebuilt(self) -> bool:
        """Whether a module has other children than the traced ones."""
        for module, children in zip(self.holders, self.children, strict=True):
            if [*module._modules.values()] != children:
                return True
        return False

    def _hooked(self) -> bool:
        """Whether a module whose call is inlined has got hooks."""
        return any(is_hooked(module) for module in self.modules[1:])

    def _wrapped(self) -> bool:
        """Whether somebody else has put a forward on a module whose call is inlined."""
        for module, replaced in zip(self.modules[1:], self.replaced[1:], strict=True):
            forward = module.__dict__.get("forward")
            if forward is not replaced and not getattr(forward, "is_sparse_forward", False):
                return True
        return False

    def graph_module(self) -> fx.GraphModule:
        """The graph as a printable, runnable module that shares the module's parameters.

        What the forward stores in its first call is ``None`` in one that is made before.
        """
        root, graph = self.modules[0], fx.Graph()
        output: Any = graph.graph_copy(self.run.graph, {})
        graph.output(output[0] if self.stores else output)
        targets: dict[str, Any] = {}
        for node in graph.nodes:
            if node.op in ("get_attr", "call_module"):
                path, _, name = str(node.target).rpartition(".")
                owner = root.get_submodule(path)
                there = name in owner._modules or hasattr(owner, name)
                targets[str(node.target)] = stored(owner, name) if there else None
        return fx.GraphModule(targets, with_any_names(graph), class_name=type(root).__name__)
