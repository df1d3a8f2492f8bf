"""Rewrite: put the method's operator between each site and its uses.

In a graph the operator is a node after the parameter's ``get_attr`` (after the computation for a
computed weight); for a module that keeps its own forward it is run around the call.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn

from st3fx.forward import Held, SparseForward, Variant
from st3fx.methods.base import Method
from st3fx.passes.computed import computed_nodes, sources
from st3fx.passes.discover import Discovery
from st3fx.passes.islands import Archipelago
from st3fx.passes.names import is_below, owner, relative
from st3fx.passes.trace import Capture
from st3fx.sites import Site

_METADATA = frozenset({"size", "dim", "numel", "stride", "is_floating_point", "ndimension"})


def state_name(parameter: str, name: str) -> str:
    """Name of a method's tensor beside a parameter: ``st3fx_weight_threshold``."""
    return f"st3fx_{parameter}_{name}"


def homes(site: Site) -> list[str]:
    """Full names under which a site's state is kept: its own and its aliases'."""
    return [site.name, *site.aliases]


@dataclass(frozen=True)
class Rewriter:
    """Rewrites the graphs and forwards of one model for one method."""

    model: nn.Module
    found: Discovery
    method: Method

    def add_state(self) -> dict[str, tuple[str, ...]]:
        """Give each site's owner the method's tensors; returns their names by site."""
        names = {}
        for site in self.found.sites:
            weight = self.model.get_parameter(site.parameters[0])
            names[site.name] = tuple(self.method.state(site, weight))
            for home in homes(site):
                module = self.model.get_submodule(owner(home))
                parameter = home.rpartition(".")[2]
                for key, tensor in self.method.state(site, weight).items():
                    if not hasattr(module, state_name(parameter, key)):  # there after a retry
                        _register(module, state_name(parameter, key), tensor)
        return names

    def forwards(self, islands: Archipelago) -> list[SparseForward]:
        """A sparse forward for every island and every module that holds a site."""
        state = self.add_state()
        captures = dict(islands.captures)
        for weight in self.found.computed.values():
            # Its own forward cannot be swapped into: it always needs a graph.
            captures.setdefault(weight.site.holders[0], list(weight.captures.items()))
        names = {holder for site in self.found.sites for holder in site.holders} | set(captures)
        made = []
        for name in sorted(names):
            module = self.model.get_submodule(name)
            tries = [self._variant(name, *capture, state) for capture in captures.get(name, ())]
            variants = [variant for variant in tries if variant is not None]
            held = [self._held(s, state) for s in self.found.sites if name in s.holders]
            if variants or held:
                made.append(SparseForward(name, module, variants, held))
        return made

    def _held(self, site: Site, state: dict[str, tuple[str, ...]]) -> Held:
        module, parameter = self.model.get_submodule(owner(site.name)), site.name.rpartition(".")[2]
        names = tuple(state_name(parameter, key) for key in state[site.name])
        computed = self.found.computed.get(site.name)
        return Held(
            site.name,
            module,
            parameter,
            names,
            self.method,
            self.method.constants(site),
            None if computed is None else computed.compute,
        )

    def _variant(
        self, name: str, mode: str, capture: Capture, state: dict[str, tuple[str, ...]]
    ) -> Variant | None:
        graph = copy_graph(capture.graph)
        modified = False
        for site in self.found.sites:
            if any(is_below(holder, name) for holder in site.holders):
                modified |= insert_op(graph, site, name, self.method, state[site.name])
        if not modified and not capture.leaves:
            return None
        graph.lint()
        root = self.model.get_submodule(name)
        inlined = [root.get_submodule(path) for path in capture.inlined if path]
        return Variant(mode, capture.spec, graph, capture.guards, [root, *inlined])


def _register(module: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy to mutate; the captured graph is kept for another attempt."""
    copied = fx.Graph()
    output = copied.graph_copy(graph, {})
    copied.output(output)
    return copied


def insert_op(
    graph: fx.Graph, site: Site, island: str, method: Method, state: tuple[str, ...]
) -> bool:
    """Insert the method's operator for one site.

    Args:
        graph: Of the module ``island``; mutated.
        site: A direct or computed site, held in or below ``island``.
        island: Full name of the module whose forward the graph is.
        method: Gives the operator and its constants.
        state: Names of the method's tensors.

    Returns:
        Whether the graph uses the site at all.
    """
    home = next((h for h in homes(site) if is_below(owner(h), island)), None)
    if home is None:
        return False
    local = relative(home, island)
    uses = _computed_uses(graph, site, island) if site.computed else _direct_uses(graph, local)
    if not uses:
        return False
    weight = next(iter(uses.values()))
    prefix, parameter = owner(local), local.rpartition(".")[2]
    with graph.inserting_after(weight):
        tensors = [
            graph.get_attr(".".join(filter(None, (prefix, state_name(parameter, key)))))
            for key in reversed(state)
        ][::-1]
    last = tensors[-1] if tensors else weight
    with graph.inserting_after(last):
        effective = graph.create_node(
            "call_function",
            method.op,
            (weight, *tensors, *method.constants(site)),
            name=f"{local.replace('.', '_')}_effective",
        )
    for user in uses:
        user.replace_input_with(weight, effective)
    return True


def _direct_uses(graph: fx.Graph, local: str) -> dict[fx.Node, fx.Node]:
    """Uses of a parameter's value -> its node; reading a shape is no use."""
    return {
        user: node
        for node in graph.nodes
        if node.op == "get_attr" and node.target == local
        for user in node.users
        if not (user.op == "call_method" and user.target in _METADATA)
        and not (user.op == "call_function" and user.target is getattr)
    }


def _computed_uses(graph: fx.Graph, site: Site, island: str) -> dict[fx.Node, fx.Node]:
    """The nodes that multiply with a computed weight -> the weight's node."""
    prefix = f"{island}." if island else ""
    return {
        consumer: weight
        for consumer, (_, weight) in computed_nodes(graph).items()
        if any(
            is_below(parameter, prefix + target)
            for target in sources(graph, weight)
            for parameter in site.parameters
        )
    }
