"""Computed weights: a layer whose forward makes the weight that it multiplies with.

Examples are weight standardisation and ``torch.nn.utils.parametrizations.weight_norm``. The
threshold has to stand behind the computation, on the tensor that multiplies.
:func:`computed_weights` traces the layer's forward alone, finds that tensor in the graph, and cuts
the computation out.

``fold`` puts a plain layer with the static weight in place of such a layer. So its forward must be
that of a convolution or linear layer of torch.nn but for the weight, which is checked node by node.

Some layers write the computed weight back to their parameter, so that the optimizer goes on from
there: max norm, causal masks, clamps. Their weight is computed from itself.
:func:`require_projection` accepts it where nobody else writes to the parameter and where projecting
twice gives what projecting once does; then it does not matter how often the weight is looked at
between two steps.

What stands in the way is a ``TraceError`` whose words follow "computed" or, for a parameter that is
written to, "written to": ``before it multiplies: ...``, ``in a forward that ...``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx.errors import TraceError
from st3fx.graphs.calls import CallSpec
from st3fx.graphs.graph import CompiledGraph
from st3fx.graphs.in_place import private
from st3fx.modules.hooks import has_hooks
from st3fx.modules.layers import plain_layer
from st3fx.modules.state import preserved
from st3fx.passes.convert.observation import Observation
from st3fx.passes.convert.products import FX_WEIGHT, convolution_layout
from st3fx.passes.trace import Capture, capture, writes_in
from st3fx.plan.names import owner
from st3fx.plan.sites import Layout, Site
from st3fx.tensors import Saved


def require_projection(
    module: nn.Module, graph: fx.Graph, needed: Sequence[fx.Node], compute: CompiledGraph
) -> None:
    """Refuse a forward whose writes to its weight are more than a projection.

    Args:
        module: The layer; left as it was.
        graph: Its forward.
        needed: The nodes that the computed weight is made of.
        compute: (module) -> the weight.

    Raises:
        TraceError: With what is wrong.
    """
    parameters = dict(module.named_parameters())
    writes = {name: nodes for name, nodes in writes_in(graph).items() if name in parameters}
    if not writes:
        return
    if len(writes) > 1:
        raise TraceError(f"before it multiplies: its forward writes to {', '.join(writes)}")
    ((name, nodes),) = writes.items()
    if not set(nodes) <= set(needed):
        raise TraceError(f"before it multiplies, and its forward writes to {name} after reading it")
    if has_hooks(module):
        raise TraceError(f"before it multiplies: its forward writes to {name}, and it has hooks")
    if not _stays(module, parameters[name], compute):
        raise TraceError(
            f"before it multiplies: its forward writes other values to {name} in each call, where "
            "only a projection (a clamp, a norm) could be followed"
        )


def _stays(module: nn.Module, parameter: Tensor, compute: CompiledGraph) -> bool:
    """Whether the weight, computed from what the forward has written, is the same."""
    saved = Saved(parameter)
    with preserved(module), torch.no_grad():
        try:
            first = compute(module.eval())
            if first.shape != parameter.shape:
                return False
            parameter.copy_(first)
            # A norm of what was scaled to it may be off by its rounding.
            error = (compute(module) - first).abs()
            return bool((error <= 8 * torch.finfo(first.dtype).eps * first.abs()).all())
        finally:
            saved.restore()


@dataclass(frozen=True)
class ComputedWeight:
    """A computed weight of one module.

    Attributes:
        site: Its site; the holder is the module.
        captures: The module's graphs, by mode.
        compute: (module) -> the weight, before the threshold.
    """

    site: Site
    captures: dict[str, Capture]
    compute: CompiledGraph


def weight_only(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on no input: parameters, buffers, and what is computed from them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def weight_argument(node: fx.Node) -> tuple[str, fx.Node] | None:
    """Operator and weight of a node that multiplies, or ``None``."""
    if node.op not in ("call_function", "call_method") or node.target not in FX_WEIGHT:
        return None
    op, position, keyword = FX_WEIGHT[node.target]
    weight = node.args[position] if position < len(node.args) else node.kwargs.get(keyword)
    return (op, weight) if isinstance(weight, fx.Node) else None


def computed_nodes(graph: fx.Graph) -> dict[fx.Node, tuple[str, fx.Node]]:
    """Multiplying node -> operator and the computed weight that it reads."""
    static = weight_only(graph)
    found = {}
    for node in graph.nodes:
        match = weight_argument(node)
        if match is None or node in static:  # a product of parameters alone, as LoRA's B @ A
            continue
        if match[1] in static and match[1].op != "get_attr":
            found[node] = match
    return found


def computed_weights(
    model: nn.Module, holder: str, observation: Observation
) -> list[ComputedWeight]:
    """The computed weights of one module, in the order of its forward.

    Raises:
        TraceError: If its forward cannot be traced, or no plain layer does the same.
    """
    module = model.get_submodule(holder)
    captures: dict[str, Capture] = {}
    for training, spec, _ in observation.calls.get(holder, []):
        with preserved(module):
            module.train(training)
            mode = "train" if training else "eval"
            if mode not in captures:
                captures[mode] = _traced(holder, module, spec)
    if not captures:
        raise TraceError("in a forward whose calls were not seen")
    modes = [mode for mode, traced in captures.items() if computed_nodes(traced.graph)]
    if 0 < len(modes) < len(captures):
        raise TraceError(f"in {modes[0]} mode alone")
    uses = [_only_use(module, traced.graph) for traced in captures.values()]
    graph, (consumer, op, weight) = next(iter(captures.values())).graph, uses[0]
    compute = _extract(graph, weight)
    with preserved(module), torch.no_grad():
        value = compute(module.eval())
    try:
        _check_plain(module, graph, consumer, value)
    except TraceError as error:
        raise TraceError(f"before it multiplies: {error}") from error
    site = _site(model, holder, op, value, sources(weight))
    for traced, (_, _, used) in zip(captures.values(), uses, strict=True):
        require_projection(module, traced.graph, _closure(used), compute)
    return [ComputedWeight(site, captures, compute)]


def _only_use(module: nn.Module, graph: fx.Graph) -> tuple[fx.Node, str, fx.Node]:
    """The node that multiplies with a computed weight, its operator, and the weight.

    Raises:
        TraceError: If there is none, or more than one.
    """
    nodes = computed_nodes(graph)
    if not nodes and writes_in(graph).keys() & dict(module.named_parameters()).keys():
        raise TraceError("after it multiplies: write before that, or outside of the forward")
    if not nodes and has_hooks(module):
        raise TraceError(
            "before it multiplies: by a hook, as torch.nn.utils.weight_norm does (use "
            "torch.nn.utils.parametrizations instead)"
        )
    if not nodes:
        raise TraceError(
            "before it multiplies: no convolution or linear layer in its forward reads the result"
        )
    if len(nodes) > 1:
        raise TraceError(
            f"before it multiplies: {len(nodes)} of its products use a computed weight, not one"
        )
    consumer, (op, weight) = next(iter(nodes.items()))
    return consumer, op, weight


def _traced(holder: str, module: nn.Module, spec: CallSpec) -> Capture:
    try:
        return capture(holder, module, spec, {holder})
    except TraceError as error:
        raise TraceError(f"in a forward that cannot be traced: {error}") from error


def _check_plain(module: nn.Module, graph: fx.Graph, consumer: fx.Node, weight: Tensor) -> None:
    """Refuse a forward that differs from the plain layer's in more than the weight.

    Raises:
        TraceError: With what differs.
    """
    plain = plain_layer(module, weight)
    static = weight_only(graph)
    moving = [n for n in graph.nodes if n not in static and n.op not in ("placeholder", "output")]
    if moving != [consumer]:
        raise TraceError(f"{type(module).__name__} does more than a {type(plain).__name__}")
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    try:
        spec = CallSpec(plain, tuple(torch.empty(0) for _ in inputs), {})
    except TypeError as error:
        names = f"{type(module).__name__} takes more arguments than a {type(plain).__name__}"
        raise TraceError(names) from error
    reference = capture("", plain, spec, {""}).graph
    expected = next(node for node in reference.nodes if weight_argument(node) is not None)
    if _signature(consumer) != _signature(expected):
        raise TraceError(
            f"{type(module).__name__} calls its {consumer.name} differently from a "
            f"{type(plain).__name__}"
        )


def _signature(node: fx.Node) -> Any:
    """A multiplying node's target and arguments, without its weight."""
    match = weight_argument(node)
    weight = match[1] if match is not None else None

    def name(argument: fx.Node) -> str:
        if argument is weight:
            return "weight"
        return str(argument.target) if argument.op == "get_attr" else argument.op

    return str((node.target, fx.map_arg(node.args, name), fx.map_arg(node.kwargs, name)))


def sources(weight: fx.Node) -> list[str]:
    """Targets (parameters, buffers, modules) that a weight is computed from."""
    return [str(n.target) for n in _closure(weight) if n.op in ("get_attr", "call_module")]


def _closure(weight: fx.Node) -> list[fx.Node]:
    """A node and all that it needs, in the order of the graph."""
    needed = {weight}
    pending = [weight]
    while pending:
        missing = [node for node in pending.pop().all_input_nodes if node not in needed]
        needed.update(missing)
        pending += missing
    return [node for node in weight.graph.nodes if node in needed]


def _extract(graph: fx.Graph, weight: fx.Node) -> CompiledGraph:
    """The part of a graph that computes a weight, as a function of the module.

    It writes to copies of what the module's forward writes to.
    """
    part = fx.Graph()
    written = writes_in(graph)
    mapping: dict[fx.Node, fx.Node] = {}
    copies: dict[str, fx.Node] = {}
    for node in _closure(weight):
        target = str(node.target)
        if node.op == "get_attr" and target in written:
            if target not in copies:
                copies[target] = part.call_function(private, (part.get_attr(target),))
            mapping[node] = copies[target]
        else:
            mapping[node] = part.node_copy(node, lambda n: mapping[n])
    part.output(mapping[weight])
    return CompiledGraph(part)


def _site(model: nn.Module, holder: str, op: str, value: Tensor, sources: list[str]) -> Site:
    module = model.get_submodule(holder)
    groups = int(getattr(module, "groups", 1))
    layout = convolution_layout(op, groups) if op.startswith("conv") else Layout((0,))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters: list[str] = []
    for target in sources:
        found: Any = _resolve(module, target)
        tensors = found.parameters() if isinstance(found, nn.Module) else [found]
        parameters += [names[id(tensor)] for tensor in tensors if id(tensor) in names]
    return Site(
        name=f"{holder}.weight" if holder else "weight",
        parameters=tuple(dict.fromkeys(parameters)),
        shape=tuple(value.shape),
        op=op,
        layout=layout,
        holders=(holder,),
        computed=True,
        groups=groups,
    )


def _resolve(module: nn.Module, target: str) -> Any:
    path = owner(target)
    return getattr(module.get_submodule(path), target.rpartition(".")[2])
