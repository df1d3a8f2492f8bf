"""Trace: capture one module's forward as an fx graph with guards, or say what stopped it.

Beyond ``torch.fx.Tracer``:

* Submodules without sites stay calls (batch norm, dropout, stochastic depth): they keep their own
  state, randomness and hooks. A submodule that cannot be traced becomes such a call too.
* Proxies answer where Python needs a value: a size that the code branches on, a length, a type. The
  answer comes from the observed call's shapes, without data, and is a guard.
* Every attribute that the traced code read is a guard: where one has another value later (a
  ``training`` flag, a drop rate, a replaced child), the graph does not apply.
* Fail closed: a branch on a tensor's data, ``no_grad``, ``autocast``, checkpointing, attributes
  that a forward writes, numbers drawn in Python or buffers read while tracing are refused, because
  a graph would lose them silently.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx.core.calls import CallSpec, is_value, same_value
from st3fx.core.graphs import Guard
from st3fx.core.stand_ins import has_hooks
from st3fx.core.state import Attributes, preserved_rng, rng_states
from st3fx.errors import TraceError
from st3fx.passes.ambient import RefuseRealTensors, ambient_state, reason_of, refused_contexts
from st3fx.passes.asked import Asked
from st3fx.passes.patches import patched
from st3fx.passes.proxies import AttributeProxy, ValueProxy, iterated
from st3fx.passes.reads import Reads
from st3fx.passes.records import class_reference, object_state, record_fields

_OWN_KERNELS = (
    nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.RNNBase,
)  # fmt: skip
"""Layers that choose a fused kernel by what they are given: a graph would choose another one."""


@dataclass
class Capture:
    """One traced forward.

    Attributes:
        name: Full name of the module in the model.
        spec: The calls that the graph answers.
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
        self._tensor_names = _tensor_names(root)
        self._module_names = {id(module): path for path, module in root.named_modules()}
        self._attribute_nodes: dict[str, fx.Proxy] = {}
        self.asked = Asked(root, spec)
        self._reads = Reads(root, self.asked, self.named_proxy)
        self._returning = False

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
            stored = {name: _attribute(root, name) for name in self._attributes.changes()}
            self._attributes.restore()
            written = self._reads.restore()
        if drawn:
            raise TraceError("draws random numbers outside of torch")
        changed = [name for name, value in stored.items() if not self._was_there(name, value)]
        if changed or written:
            raise TraceError(f"stores {', '.join([*changed, *written][:3])} while it runs")
        self._finish(graph)
        return self.capture

    def _was_there(self, name: str, stored: Any) -> bool:
        """Whether a call stores in an attribute what its last call has left there."""
        before = _attribute(self.root, name)
        if isinstance(stored, torch.ScriptMethod):
            return True  # looked up for the first time
        if not isinstance(stored, fx.Proxy) or not is_value(before):
            return False
        return same_value(self.asked.ask(stored.node, "plain"), before)

    def _finish(self, graph: fx.Graph) -> None:
        self.capture.spec = self.capture.spec.guarded(self.asked.guards(graph))
        self.asked.drop_unused(graph)
        graph.lint()
        self.capture.graph = graph
        self.capture.guards = list(self._reads.guards.values())

    # --- torch.fx.Tracer's hooks ---

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One placeholder per tensor of the call; everything else as it was in the call."""
        spec = self.capture.spec
        self.asked.follow(self.graph)
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in spec.names()]
        root = self.root

        def forward(*tensors: Any) -> Any:
            args, kwargs = spec.call(list(tensors))
            self.capture.inlined[""] = None
            with refused_contexts(self.asked), patched(self), self._reads.watched():
                found = root.forward(*args, **kwargs)  # root_fn is the class's, not the instance's
            self._returning = True
            return found

        return forward, proxies

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Refuse nodes under a context that the graph would not reproduce."""
        if ambient_state() != self._ambient:
            raise TraceError("runs under no_grad, autocast, checkpointing or a tensor mode")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """Keep dicts and dataclasses, name the module's tensors, and refuse other constants."""
        if isinstance(a, fx.Proxy):
            return a.node
        record = record_fields(a)
        if record is None and self._returning:
            record = class_reference(a) if isinstance(a, type) else object_state(a)
        if record is not None:
            make, *arguments = record
            args, kwargs = map(super().create_arg, arguments)
            return self.create_node("call_function", make, args, kwargs)
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
        if not self.asked.answers:
            return attr_val
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
        if not self.asked.answers:
            return forward(*args, **kwargs)
        name = self._module_names.get(id(m))
        if name is None:
            if has_hooks(m) or next(m.parameters(), next(m.buffers(), None)) is not None:
                raise TraceError(f"calls a {type(m).__name__} that is not one of its submodules")
            return forward(*args, **kwargs)  # an activation, a loss: just functions
        if self._full_name(name) not in self._sites_in:
            called = super().call_module(m, forward, args, kwargs)
            self.asked.note_call(called.node, m)
            return called
        reason = _reason_to_call(m)
        if reason is None:
            mark = self._mark()
            try:
                self.capture.inlined[name] = None
                return super().call_module(m, forward, args, kwargs)
            except Exception as error:  # noqa: BLE001 - whatever a user's forward raises on proxies
                reason = reason_of(error)
                self._undo(mark, name)
        self.capture.leaves.setdefault(name, reason)
        called = self.create_proxy("call_module", name, args, kwargs)
        self.asked.note_call(called.node, m)
        return called

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules without sites; those with sites are traced through by ``call_module``."""
        return self._full_name(module_qualified_name) not in self._sites_in

    # --- proxies, and what they are asked ---

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

    def named_proxy(self, tensor: Tensor) -> fx.Proxy | None:
        """The proxy of a parameter or buffer."""
        name = self._tensor_names.get(id(tensor))
        return None if name is None else self._attribute(name)

    # --- bookkeeping ---

    def _full_name(self, name: str) -> str:
        return ".".join(part for part in (self.capture.name, name) if part)

    def _attribute(self, name: str) -> fx.Proxy:
        if name not in self._attribute_nodes:
            self._attribute_nodes[name] = self.create_proxy("get_attr", name, (), {})
            self._reads.guard_tensor(name)
        return self._attribute_nodes[name]

    def _growing(self) -> tuple[dict[Any, Any], ...]:
        """All that a trace adds to, in the order of addition."""
        capture = self.capture
        return (
            self._attribute_nodes,
            self._reads.guards,
            capture.inlined,
            capture.leaves,
            self.module_stack,
        )

    def _mark(self) -> tuple[fx.Node | None, int, list[int]]:
        last = next(iter(reversed(self.graph.nodes)), None)
        return last, self.asked.mark(), [len(table) for table in self._growing()]

    def _undo(self, mark: tuple[fx.Node | None, int, list[int]], name: str) -> None:
        """Back to before a submodule was tried: its nodes, guards and attributes are dropped."""
        last, answers, sizes = mark
        self.asked.undo(answers)
        for table, size in zip(self._growing(), sizes, strict=True):
            while len(table) > size:
                table.popitem()
        self._attributes.restore(below=name)
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.asked.erase(node)
            self.graph.erase_node(node)


def _tensor_names(root: nn.Module) -> dict[int, str]:
    """The names of all tensors on the modules of ``root``: parameters and buffers come first."""
    names = {id(tensor): path for path, tensor in [*root.named_buffers(), *root.named_parameters()]}
    for path, module in root.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, Tensor):
                names.setdefault(id(value), f"{path}.{key}" if path else key)
    return names


def _attribute(root: nn.Module, name: str) -> Any:
    path, _, key = name.rpartition(".")
    return root.get_submodule(path).__dict__.get(key)


def _reason_to_call(module: nn.Module) -> str | None:
    """Why a submodule with sites is not even tried."""
    if has_hooks(module):
        return "has hooks"
    if isinstance(module, _OWN_KERNELS):
        return f"{type(module).__name__} chooses its kernel by what it is given"
    return None


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
    if isinstance(root, _OWN_KERNELS):
        raise TraceError(f"{type(root).__name__} chooses its kernel by what it is given")
    for thing in spec.objects():
        raise TraceError(f"is given a {type(thing).__name__}, which may change from call to call")
    return IslandTracer(name, root, spec, sites_in).run(root)
