"""Trace: capture one module's forward as an fx graph with guards, or say what stopped it.

Beyond ``torch.fx.Tracer``:

* Submodules without sites stay calls (batch norm, dropout, stochastic depth): they keep their own
  state, randomness and hooks. A submodule that cannot be traced becomes such a call too.
* Proxies answer where Python needs a value: a size that the code branches on, a length, a type. The
  answer comes from the observed call's shapes, without data, and is a guard.
* Every attribute that the traced code read is a guard: where one has another value later (a
  ``training`` flag, a drop rate, a replaced child), the graph does not apply. Tensors that a
  forward stores are outputs of the graph, which the call then stores.
* ``no_grad`` and ``autocast`` are regions of the graph.
* Fail closed: a branch on the data of activations, checkpointing, other attributes that a forward
  writes, numbers drawn in Python or buffers read while tracing are refused, because a graph would
  lose them silently.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx import under_way
from st3fx.errors import TraceError
from st3fx.graphs.calls import CallSpec
from st3fx.graphs.code import has_plain_names
from st3fx.graphs.definitions import Definitions
from st3fx.graphs.graph import Guard
from st3fx.modules.hooks import has_hooks
from st3fx.modules.state import preserved_rng, rng_states
from st3fx.passes.trace.ambient import (
    OWN_KERNELS,
    ProxiesForTensors,
    RefuseRealTensors,
    contained_tensors,
    reason_of,
    reason_to_call,
    require_idle_recorders,
)
from st3fx.passes.trace.outputs import (
    Stores,
    class_reference,
    object_state,
    record_fields,
    tensor_names,
)
from st3fx.passes.trace.patches import patched
from st3fx.passes.trace.proxies import NUMBER, AttributeProxy, ValueProxy, iterated
from st3fx.passes.trace.questions import NumberError, Questions, mark, undo
from st3fx.passes.trace.reads import Reads
from st3fx.passes.trace.regions import Regions
from st3fx.passes.trace.repeats import Repeats, reshapes
from st3fx.passes.trace.writes import Writes

HANDED = "handed"
"""Mark of a graph's read of a parameter that code got by another way than by its attribute."""


@dataclass
class Capture:
    """One traced forward.

    Attributes:
        name: Full name of the module in the model.
        spec: The calls that the graph answers.
        graph: Its placeholders are the call's tensors in order; targets are relative to the module.
        guards: What the traced code read.
        definitions: What it found on classes and in globals.
        inlined: Relative names of the modules that were traced through, the root included.
        leaves: Relative names of called submodules with sites in them, with the reason.
        stores: Relative names of the attributes that a call sets; if there are some, the graph
            gives the output and a list of their values.
        repeated: Whether the trace of one submodule was given again for another.
    """

    name: str
    spec: CallSpec
    graph: fx.Graph
    guards: list[Guard] = field(default_factory=list)
    definitions: Definitions = field(default_factory=Definitions)
    inlined: dict[str, None] = field(default_factory=dict)
    leaves: dict[str, str] = field(default_factory=dict)
    stores: list[str] = field(default_factory=list)
    repeated: bool = False


class AnsweringTracer(fx.Tracer):
    """What ``torch.fx.Tracer`` asks of a tracer about its proxies.

    Attributes:
        questions: Knows the values, and keeps each answer as a guard.
    """

    questions: Questions

    def proxy(self, node: fx.Node) -> ValueProxy:
        """Stands for a node's value."""
        return ValueProxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """A node and its proxy; ``None`` itself for an item that is ``None``."""
        proxy = super().create_proxy(*args, **kwargs)
        node = proxy.node
        if node.op == "call_function" and node.target is operator.getitem:
            root = node.args[0]
            if isinstance(root, fx.Node) and self.questions.is_none(root, node):
                return None
        return proxy

    def unless_none(self, proxy: AttributeProxy) -> Any:
        """An attribute, or ``None`` itself where a module gave that."""
        root = proxy.root.node
        if self.questions.is_container(root) and self.questions.is_none(root, proxy.node):
            return None
        return proxy

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a value, as proxies."""
        keys = self.questions.keys(obj.node)
        length = len(keys) if keys is not None else self.questions.ask(obj.node, "length")
        return iterated(obj, self.questions.value(obj.node), length)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a value that is not a tensor's data."""
        return bool(self.questions.ask(obj.node, "bool"))

    def keys(self, obj: fx.Proxy) -> Any:
        """The keys of a mapping."""
        found = self.questions.keys(obj.node)
        return super().keys(obj) if found is None else found


class IslandTracer(AnsweringTracer):
    """Captures the forward of one module for one structure of calls."""

    proxy_buffer_attributes = True

    def __init__(
        self, name: str, root: nn.Module, spec: CallSpec, sites_in: set[str], *, repeat: bool = True
    ) -> None:
        """Prepare a trace.

        Args:
            name: Full name of ``root`` in the model.
            root: The module to capture, in the mode (train or eval) to capture.
            spec: A call of it.
            sites_in: Full names of all modules that have sites in them.
            repeat: Whether the trace of a submodule may be given again for others like it.
        """
        super().__init__()
        self.capture = Capture(name, spec, fx.Graph())
        self._sites_in = sites_in
        self.stores = Stores(root)
        self.writes = Writes(dict(root.named_parameters()), self.create_proxy)
        self._tensor_names, self._contained = tensor_names(root), contained_tensors(root)
        self._module_names = {id(module): path for path, module in root.named_modules()}
        self._attribute_nodes: dict[tuple[str, fx.Node | None, int, bool], fx.Proxy] = {}
        self.questions = Questions(root, spec)
        self.regions = Regions(self.questions, self.create_proxy)
        self.reads = Reads(root, self.questions, self.named_proxy)
        self._returning = False

        def has_sites(path: str) -> bool:
            return self._full_name(path) in sites_in

        names = (self._module_names, self._tensor_names)
        self.repeats = Repeats(self, root, *names, has_sites, on=repeat and not self._contained)

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
            self.stores.take_back()
            written = self.reads.restore()
        if drawn:
            raise TraceError("draws random numbers outside of torch")
        self._give(graph, self.stores.given(written))
        self._finish(graph)
        return self.capture

    def _give(self, graph: fx.Graph, stored: dict[str, Any]) -> None:
        """Let the graph give what the forward stores, beside its output."""
        self.reads.guard_stored(stored)
        if stored:
            (output,) = (node for node in graph.nodes if node.op == "output")
            with graph.inserting_before(output):
                made = [self.create_arg(value) for value in stored.values()]
            output.args = ((output.args[0], made),)
            self.capture.stores = list(stored)

    def _finish(self, graph: fx.Graph) -> None:
        self.capture.spec = self.capture.spec.guarded(self.questions.guards(graph))
        self.questions.drop_unused(graph)
        graph.lint()
        self.capture.graph = graph
        for path in self.capture.inlined:
            self.reads.guard_code(self.root.get_submodule(path))
        self.capture.guards = list(self.reads.guards.values())
        self.capture.repeated = self.repeats.used
        self.capture.definitions = self.reads.taken.definitions(self.root)

    # --- torch.fx.Tracer's hooks ---

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """One placeholder per tensor of the call; everything else as it was in the call."""
        spec = self.capture.spec
        self.questions.follow(self.graph)
        proxies = [self._argument(*own) for own in zip(spec.names(), spec.metas, strict=True)]
        root = self.root

        def forward(*tensors: Any) -> Any:
            args, kwargs = spec.call(list(tensors))
            self.capture.inlined[""] = None
            contained = ProxiesForTensors(self._contained_proxy)
            proxies = contained if self._contained else contextlib.nullcontext()
            with self.regions.watched(), patched(self), self.reads.watched(), proxies:
                found = root.forward(*args, **kwargs)  # root_fn is the class's, not the instance's
            self._returning = True
            return found

        return forward, proxies

    def _argument(self, name: str, meta: Any) -> fx.Proxy:
        """The proxy of a tensor or a number; its name hides nothing that the code needs."""
        proxy: fx.Proxy = self.create_proxy(
            "placeholder", f"{name}_" if name == "self" else name, (), {}
        )
        proxy.node.meta["argument"] = name
        if isinstance(meta, int | float):
            proxy.node.meta[NUMBER] = type(meta)
        proxy.node.target = proxy.node.name
        return proxy

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Refuse nodes under a context that the graph would not reproduce; note what writes."""
        self.regions.require_known()
        node = super().create_node(*args, **kwargs)
        if not has_plain_names(node):
            raise TraceError(f"uses a name that no code can write in {node.name}")
        self.writes.note(node)
        return node

    def assign(self, proxy: fx.Proxy, value: Any) -> None:
        """``proxy.data = value``."""
        self.writes.assign(proxy, value)

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
            proxy = self.named_proxy(a, handed=True)
            if proxy is None:
                raise TraceError("makes a constant tensor while it runs")
            return proxy.node
        if isinstance(a, dict) and type(a) is not dict:
            raise TraceError(f"makes a {type(a).__name__} while it runs")
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers as one ``get_attr`` node each."""
        if not self.questions.answers:
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
        if not self.questions.answers:
            return forward(*args, **kwargs)
        name = self._module_names.get(id(m))
        if name is None:
            if has_hooks(m) or next(m.parameters(), next(m.buffers(), None)) is not None:
                raise TraceError(f"calls a {type(m).__name__} that is not one of its submodules")
            self.questions.log.append(("stranger", m, ""))
            return forward(*args, **kwargs)  # an activation, a loss: just functions
        if self._full_name(name) not in self._sites_in:
            require_idle_recorders(name, m)
            called = super().call_module(m, forward, args, kwargs)
            self.questions.note_call(called.node, m)
            return called
        under_way.advance()
        reason = None if isinstance(self.root, OWN_KERNELS) else reason_to_call(m)
        if reason is None:
            begun = self.repeats.begin(name, m, args, kwargs)
            repeated = self.repeats.again(begun)
            if repeated:
                return repeated[0]
            before = mark(self.graph, self.questions, self._growing())
            depth = self.regions.depth
            try:
                self.inline(name, m)
                found = super().call_module(m, forward, args, kwargs)
            except Exception as error:  # noqa: BLE001 - whatever a user's forward raises on proxies
                reason = reason_of(error)
                self.regions.unwind(depth)
                undo(self.graph, self.questions, self._growing(), before)
                self.stores.undo(name)
                self.repeats.failed()
            else:
                self.repeats.keep(begun, found)
                return found
        require_idle_recorders(name, m)
        self.capture.leaves.setdefault(name, reason)
        called = self.create_proxy("call_module", name, args, kwargs)
        self.questions.note_call(called.node, m)
        return called

    def inline(self, name: str, module: nn.Module) -> None:
        """A submodule is traced through."""
        self.capture.inlined[name] = None
        self.questions.log.append(("inlined", module, ""))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules without sites; those with sites are traced through by ``call_module``."""
        return self._full_name(module_qualified_name) not in self._sites_in

    def named_proxy(self, tensor: Tensor, *, handed: bool = False) -> fx.Proxy | None:
        """The proxy of a tensor that a module has, in an attribute or in a list or dict there.

        Args:
            tensor: The tensor.
            handed: Whether code got it by another way than by its attribute.
        """
        name = self._tensor_names.get(id(tensor))
        if name is not None:
            return self._attribute(name, handed=handed)
        return self._contained_proxy(tensor)

    def _contained_proxy(self, tensor: Tensor) -> fx.Proxy | None:
        if id(tensor) not in self._contained or not self.questions.answers:
            return None
        holder, index = self._contained[id(tensor)]
        item: fx.Proxy = self.create_proxy(
            "call_function", operator.getitem, (self._attribute(holder), index), {}
        )
        return item

    # --- bookkeeping ---

    def _full_name(self, name: str) -> str:
        return ".".join(part for part in (self.capture.name, name) if part)

    def _attribute(self, name: str, *, handed: bool = False) -> fx.Proxy:
        # A weight's operator runs where the weight is used, and after what is written to it.
        place = (name, self.regions.current, self.writes.count(name), handed)
        if place not in self._attribute_nodes:
            found = self.create_proxy("get_attr", name, (), {})
            found.node.meta[HANDED] = handed
            self._attribute_nodes[place] = self.writes.current(name, found)
            self.reads.guard_tensor(name)
        return self._attribute_nodes[place]

    def parameter_node(self, name: str, like: fx.Node) -> fx.Node:
        """A parameter or buffer as one that another module's trace has read, outside of regions."""
        place = (name, None, 0, bool(like.meta[HANDED]))
        if place not in self._attribute_nodes:
            node = self.graph.create_node("get_attr", name)
            node.meta[HANDED] = place[3]
            self._attribute_nodes[place] = self.proxy(node)
        return self._attribute_nodes[place].node

    def _growing(self) -> tuple[dict[Any, Any], ...]:
        """All that a trace adds to beside nodes, in the order of addition."""
        capture = self.capture
        return (
            self._attribute_nodes,
            self.writes.nodes,
            self.reads.guards,
            capture.inlined,
            capture.leaves,
            self.module_stack,
        )


def capture(
    name: str, root: nn.Module, spec: CallSpec, sites_in: set[str], *, repeat: bool = True
) -> Capture:
    """Capture ``root.forward`` in its present mode for calls like ``spec``.

    Numbers among the arguments stay free, unless the code needs one of them itself (a branch, an
    index, a name), or something of it can be traced for the given numbers alone.

    Args:
        name: Full name of ``root`` in the model; the empty string for the model itself.
        root: Left as it was.
        spec: The structure of a call.
        sites_in: Full names of all modules that have sites in them.
        repeat: Whether the trace of a submodule may be given again for others like it.

    Raises:
        TraceError: With the reason and the user's source line.
    """
    if isinstance(root, torch.jit.ScriptModule):
        raise TraceError("is a ScriptModule: its forward is not Python")
    if isinstance(root, OWN_KERNELS) and name:
        raise TraceError(f"{type(root).__name__} chooses its kernel by what it is given")
    for thing in spec.objects():
        raise TraceError(f"is given a {type(thing).__name__}, which may change from call to call")
    free = spec.numbers
    while free:
        freed = spec.freed(free)
        try:
            found = _capture(name, root, freed, sites_in, repeat)
        except NumberError as error:
            free -= {freed.place(number) for number in error.inputs}
        except TraceError:
            break
        else:
            if not found.leaves:
                return found
            break
    return _capture(name, root, spec, sites_in, repeat)


def _capture(
    name: str, root: nn.Module, spec: CallSpec, sites_in: set[str], repeat: bool
) -> Capture:
    # Which kernel such a layer chooses is a guard; in eval mode it was observed without gradients.
    without = isinstance(root, OWN_KERNELS) and not root.training
    with torch.no_grad() if without else contextlib.nullcontext():
        tracer = IslandTracer(name, root, spec, sites_in, repeat=repeat)
        try:
            found = tracer.run(root)
        except TraceError:
            if not tracer.repeats.used:
                raise
        else:
            if not (tracer.repeats.used and any(map(reshapes, found.graph.nodes))):
                return found
        return IslandTracer(name, root, spec, sites_in, repeat=False).run(root)
