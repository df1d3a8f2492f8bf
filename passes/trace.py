"""Trace: capture one module's forward as an fx graph with guards, or say what stopped it.

Beyond ``torch.fx.Tracer``:

* Submodules without sites stay calls (batch norm, dropout, stochastic depth): they keep their own
  state, randomness and hooks. A submodule that cannot be traced becomes such a call too.
* Every attribute that the traced code read is a guard: where one has another value later (a
  ``training`` flag, a drop rate, a replaced child), the graph does not apply.
* Fail closed: ``no_grad``, ``autocast``, checkpointing, attributes that a forward writes, numbers
  drawn or buffers read while tracing are refused, because a graph would lose them silently.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx.core.calls import CallSpec, frozen
from st3fx.core.graphs import Guard, has_hooks, ordered_dict
from st3fx.core.state import Attributes, preserved_rng, rng_states
from st3fx.errors import TraceError
from st3fx.passes.ambient import (
    RefuseRealTensors,
    ambient_state,
    proxies_are_tensors,
    reason_of,
    refused_contexts,
)

_INTERNAL = frozenset(nn.Module().__dict__) - {"training"}


@dataclass
class Capture:
    """One traced forward.

    Attributes:
        name: Full name of the module in the model.
        spec: The structure of the calls that the graph answers.
        graph: Its placeholders are the call's tensors in order; targets are relative to the module.
        guards: What the traced code read.
        inlined: Relative names of the modules that were traced through, the root included.
        leaves: Relative names of called submodules with sites in them, with the reason.
    """

    name: str
    spec: CallSpec
    graph: fx.Graph
    guards: list[Guard] = field(default_factory=list)
    inlined: dict[str, None] = field(default_factory=dict)
    leaves: dict[str, str] = field(default_factory=dict)


class IslandTracer(fx.Tracer):
    """Captures the forward of one module for one structure of calls."""

    proxy_buffer_attributes = True

    def __init__(self, name: str, root: nn.Module, spec: CallSpec, sites_in: set[str]) -> None:
        """Prepare a trace.

        Args:
            name: Full name of ``root`` in the model.
            root: The module to capture, in the mode (train or eval) to capture.
            spec: A call of it.
            sites_in: Full names of all modules that have sites in them.
        """
        super().__init__()
        self.capture = Capture(name, spec, fx.Graph())
        self._sites_in = sites_in
        self._attributes = Attributes(root)
        self._ambient = ambient_state()
        self._tensor_names = {
            id(tensor): path for path, tensor in [*root.named_buffers(), *root.named_parameters()]
        }
        self._module_names = {id(module): path for path, module in root.named_modules()}
        self._attribute_nodes: dict[str, fx.Proxy] = {}
        self._read: dict[tuple[int, str], Guard] = {}

    def run(self, root: nn.Module) -> Capture:
        """Trace.

        Raises:
            TraceError: With the reason and the user's source line.
        """
        before = rng_states()
        try:
            with preserved_rng():
                with RefuseRealTensors():  # type: ignore[no-untyped-call]
                    graph = self.trace(root)
                drawn = rng_states() != before
        except Exception as error:
            raise TraceError(reason_of(error)) from error
        finally:
            changed = self._attributes.changes()
            self._attributes.restore()
        if drawn:
            raise TraceError("draws random numbers that do not depend on its inputs")
        if changed:
            raise TraceError(f"stores {', '.join(changed[:3])} while it runs")
        graph.lint()
        self.capture.graph = graph
        self.capture.guards = list(self._read.values())
        return self.capture

    # --- torch.fx.Tracer's hooks ---

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One placeholder per tensor of the call; everything else as it was in the call."""
        spec = self.capture.spec
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in spec.names()]
        root = self.root

        def forward(*tensors: Any) -> Any:
            args, kwargs = spec.call(list(tensors))
            self.capture.inlined[""] = None
            with refused_contexts(), proxies_are_tensors(), self._recorded_reads():
                return root.forward(*args, **kwargs)  # root_fn is the class's, not the instance's

        return forward, proxies

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Refuse nodes under a context that the graph would not reproduce."""
        if ambient_state() != self._ambient:
            raise TraceError("runs under no_grad, autocast, checkpointing or a tensor mode")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """Keep ``OrderedDict`` outputs, name the module's tensors, and refuse other constants."""
        if type(a) is collections.OrderedDict:
            items = [[key, self.create_arg(value)] for key, value in a.items()]
            return self.create_node("call_function", ordered_dict, (items,), {})
        if isinstance(a, Tensor):
            name = self._tensor_names.get(id(a)) or self.tensor_attrs.get(a)
            if name is None:
                raise TraceError("makes a constant tensor while it runs")
            return self._attribute(name).node
        if isinstance(a, dict) and type(a) is not dict:
            raise TraceError(f"makes a {type(a).__name__} while it runs")
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers as one ``get_attr`` node each."""
        name = self._tensor_names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        return attr_val if name is None else self._attribute(name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace through a submodule that has sites; where that fails, keep it as a call."""
        name = self._module_names.get(id(m))
        if name is None:
            raise TraceError(f"calls a {type(m).__name__} that is not one of its submodules")
        if self._full_name(name) not in self._sites_in:
            return super().call_module(m, forward, args, kwargs)
        reason = "has hooks" if has_hooks(m) else None
        if reason is None:
            mark = self._mark()
            try:
                self.capture.inlined[name] = None
                return super().call_module(m, forward, args, kwargs)
            except Exception as error:  # noqa: BLE001 - whatever a user's forward raises on proxies
                reason = reason_of(error)
                self._undo(mark, name)
        self.capture.leaves.setdefault(name, reason)
        return self.create_proxy("call_module", name, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules without sites; those with sites are traced through by ``call_module``."""
        return self._full_name(module_qualified_name) not in self._sites_in

    # --- bookkeeping ---

    def _full_name(self, name: str) -> str:
        return ".".join(part for part in (self.capture.name, name) if part)

    def _attribute(self, name: str) -> fx.Proxy:
        if name not in self._attribute_nodes:
            self._attribute_nodes[name] = self.create_proxy("get_attr", name, (), {})
        return self._attribute_nodes[name]

    @contextlib.contextmanager
    def _recorded_reads(self) -> Iterator[None]:
        """Note every attribute that code reads from a module's ``__dict__``."""
        read, known = self._read, self._module_names

        def record(module: nn.Module, name: str) -> Any:
            value = object.__getattribute__(module, name)
            if (
                name not in _INTERNAL
                and (id(module), name) not in read
                and id(module) in known
                and name in object.__getattribute__(module, "__dict__")
            ):
                read[id(module), name] = Guard(module, name, frozen(value))
            return value

        nn.Module.__getattribute__ = record  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            del nn.Module.__getattribute__

    def _growing(self) -> tuple[dict[Any, Any], ...]:
        """All that a trace adds to, in the order of addition."""
        capture = self.capture
        return (
            self._attribute_nodes,
            self._read,
            capture.inlined,
            capture.leaves,
            self.module_stack,
        )

    def _mark(self) -> tuple[fx.Node | None, list[int]]:
        last = next(iter(reversed(self.graph.nodes)), None)
        return last, [len(table) for table in self._growing()]

    def _undo(self, mark: tuple[fx.Node | None, list[int]], name: str) -> None:
        """Back to before a submodule was tried: its nodes, guards and attributes are dropped."""
        last, sizes = mark
        for table, size in zip(self._growing(), sizes, strict=True):
            while len(table) > size:
                table.popitem()
        self._attributes.restore(below=name)
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)


def trace(name: str, root: nn.Module, spec: CallSpec, sites_in: set[str]) -> Capture:
    """Capture ``root.forward`` in its present mode for calls like ``spec``.

    Args:
        name: Full name of ``root`` in the model; the empty string for the model itself.
        root: Left as it was.
        spec: The structure of a call.
        sites_in: Full names of all modules that have sites in them.

    Raises:
        TraceError: With the reason and the user's source line.
    """
    if isinstance(root, torch.jit.ScriptModule):
        raise TraceError("is a ScriptModule: its forward is not Python")
    return IslandTracer(name, root, spec, sites_in).run(root)
