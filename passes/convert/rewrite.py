"""Rewrite: put the method's operator between each site and its uses.

In a graph the operator is a node after the parameter's ``get_attr`` (after the computation for a
computed weight); a module that keeps its own forward reads the effective weight as its attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.utils import parametrize

from st3fx.graphs.forward import SparseForward
from st3fx.graphs.graph import Variant
from st3fx.methods.base import Method
from st3fx.modules import rnn
from st3fx.modules.converted import enter
from st3fx.modules.marks import (
    COMPUTE,
    CONVERSION,
    SITES,
    Conversion,
    Sparse,
    homes,
    is_state,
    put_state,
    state_name,
)
from st3fx.passes.convert.computed import computed_nodes, sources
from st3fx.passes.convert.discover import Discovery
from st3fx.passes.convert.islands import Archipelago
from st3fx.passes.convert.products import FX_LOOKUPS
from st3fx.passes.trace import HANDED, Capture
from st3fx.plan.names import ancestors, is_below, owner, relative
from st3fx.plan.sites import IslandInfo, Site, SparsityPlan
from st3fx.sparsifier.run import Run

_METADATA = frozenset(
    {
        "size", "dim", "numel", "stride", "is_floating_point", "ndimension", "nelement", "shape",
        "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "itemsize", "nbytes",
    }
)  # fmt: skip
"""Attributes and methods of a weight that say nothing of its values."""


def rewrite(
    model: nn.Module,
    found: Discovery,
    islands: Archipelago,
    method: Method,
    *,
    keep: bool = True,
) -> list[SparseForward]:
    """Make a model a converted one, with the plan of what was done on it.

    Args:
        model: Gets marks, the method's tensors, classes and forwards.
        found: Its sites.
        islands: Its graphs.
        method: Whose operator is put into graphs and forwards.
        keep: Whether captured graphs stay as they are, for another attempt.

    Returns:
        All of its forwards.
    """
    run = Run()
    forwards = _Rewriter(model, found, method, run, keep).install(islands)
    plan = _plan(model, found, islands, forwards, method)
    model.__dict__[CONVERSION] = Conversion(plan, method, run)
    run.bind(model)
    return forwards


def _plan(
    model: nn.Module,
    found: Discovery,
    islands: Archipelago,
    forwards: Sequence[SparseForward],
    method: Method,
) -> SparsityPlan:
    """What was done, before anything of it is verified."""
    graphs = [(f.name, f.variants) for f in forwards if f.name in islands.captures]
    return SparsityPlan(
        sites=tuple(found.sites),
        skipped=tuple(found.skipped),
        islands=tuple(
            IslandInfo(
                name,
                tuple(variant.mode for variant in variants),
                max(len(variant.run.graph.nodes) for variant in variants),
                tuple(dict.fromkeys(w for v in variants for w in v.spec.words())),
            )
            for name, variants in graphs
            if variants
        ),
        opaque=tuple(islands.opaque),
        method=method.name,
        target=method.target,
        total_parameters=sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if not (is_state(name) and name.endswith(method.learned))  # as many as weights
        ),
        verified=False,
        granularity=method.granularity.text,
    )


@dataclass(frozen=True)
class _Rewriter:
    """Rewrites the graphs of one model for one method, and marks the modules that own sites."""

    model: nn.Module
    found: Discovery
    method: Method
    run: Run
    keep: bool

    def install(self, islands: Archipelago) -> list[SparseForward]:
        """Make the model a converted one: marks, the method's tensors, classes and forwards."""
        state = {site.name: put_state(self.model, site, self.method) for site in self.found.sites}
        forwards = self._forwards(islands, state)
        names = self._mark()
        modules = {forward.module for forward in forwards} | names.keys() | {self.model}
        captured = {forward.module for forward in forwards}
        for module in modules:
            enter(module, tuple(sorted(names.get(module, ()))), module in captured)
        for forward in forwards:
            forward.install(self.run)
        return forwards

    def _mark(self) -> dict[nn.Module, set[str]]:
        """Mark the sites; module -> parameters whose attribute becomes the effective weight."""
        names: dict[nn.Module, set[str]] = {}
        for site in self.found.sites:
            mark = Sparse(site, self.method, self.method.arguments(site), self.run)
            computed = self.found.computed.get(site.name)
            for home in homes(site):
                module, parameter = self._place(home)
                module.__dict__.setdefault(SITES, {})[parameter] = mark
                names.setdefault(module, set())
                if computed is not None:
                    module.__dict__.setdefault(COMPUTE, {})[parameter] = computed.compute
                if computed is None or parametrize.is_parametrized(module, parameter):
                    names[module].add(parameter)
        return names

    def _place(self, home: str) -> tuple[nn.Module, str]:
        return self.model.get_submodule(owner(home)), home.rpartition(".")[2]

    def _forwards(
        self, islands: Archipelago, state: dict[str, tuple[str, ...]]
    ) -> list[SparseForward]:
        """A sparse forward for every island, and where nothing else reaches a computed weight."""
        captures, unreachable = dict(islands.captures), {}
        for name, weight in self.found.computed.items():
            holder = weight.site.holders[0]
            module = self.model.get_submodule(holder)
            if not parametrize.is_parametrized(module, name.rpartition(".")[2]):
                captures.setdefault(holder, list(weight.captures.items()))
                unreachable[holder] = name
        inside: dict[str, list[Site]] = {}
        for site in self.found.sites:
            for island in set().union(*map(ancestors, site.holders)) & captures.keys():
                inside.setdefault(island, []).append(site)
        made = []
        for name in sorted(captures):
            given = handed(captures[name], name, inside.get(name, []))  # as captured
            tries = [
                self._variant(name, *capture, inside.get(name, []), state)
                for capture in captures[name]
            ]
            variants = [variant for variant in tries if variant is not None]
            if variants or name in unreachable:
                module = self.model.get_submodule(name)
                made.append(SparseForward(name, module, variants, unreachable.get(name, ""), given))
        return made

    def _variant(
        self,
        name: str,
        mode: str,
        capture: Capture,
        sites: list[Site],
        state: dict[str, tuple[str, ...]],
    ) -> Variant | None:
        graph = copy_graph(capture.graph) if self.keep else capture.graph
        uses = SiteUses(graph, name)
        inserted = [insert_op(graph, uses, s, self.method, state[s.name]) for s in sites]
        if not any(inserted) and not capture.leaves:
            return None
        graph.lint()
        root = self.model.get_submodule(name)
        inlined = [root.get_submodule(path) for path in capture.inlined if path]
        modules = [root, *inlined]
        below = {
            relative(home, name): site
            for site in sites
            for home in homes(site)
            if is_below(owner(home), name)
        }
        latent = frozenset(home for home, site in below.items() if not site.computed)
        marked = [(root.get_submodule(owner(home)), home.rpartition(".")[2]) for home in below]
        return Variant(
            mode, capture.spec, graph, capture.guards, modules, capture.stores, latent, marked,
            capture.definitions.of_owners(module for module, _ in marked),
        )  # fmt: skip


def handed(captures: list[tuple[str, Capture]], island: str, sites: list[Site]) -> str:
    """A site whose values the graphs get by ``parameters()`` or the like; empty if there is none.

    There the module's own forward would get its latent weight. Recurrent layers read theirs from a
    list, which is seen to (``st3fx.modules.converted``).
    """
    direct = {home: site.name for site in sites if not site.computed for home in homes(site)}
    for _, capture in captures:
        for node in capture.graph.nodes:
            full = f"{island}.{node.target}" if island else str(node.target)
            is_site = node.op == "get_attr" and node.meta.get(HANDED) and full in direct
            if is_site and any(map(_reads_values, node.users)):
                return direct[full]
    return ""


def _reads_values(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    is_list = node.op == "call_function" and name in rnn.FUNCTIONS
    return _uses(node) and not is_list and not name.endswith("_like") and name[:4] != "new_"


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy to mutate; the captured graph is kept for another attempt."""
    copied = fx.Graph()
    output = copied.graph_copy(graph, {})
    copied.output(output)
    return copied


class SiteUses:
    """Where a graph reads weights, looked up by name."""

    def __init__(self, graph: fx.Graph, island: str) -> None:
        """Index ``graph``, whose module is ``island``."""
        self.island = island
        self._attributes: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                self._attributes.setdefault(str(node.target), []).append(node)
        self._computed = [
            (consumer, weight, sources(weight))
            for consumer, (_, weight) in computed_nodes(graph).items()
        ]

    def of(self, site: Site) -> tuple[str, dict[fx.Node, fx.Node]]:
        """The site's name as seen from the island, and its uses -> the weight's node.

        Reading a shape is no use of a weight, nor is a lookup.
        """
        if site.computed:
            return relative(site.name, self.island), self._computed_uses(site)
        below = [home for home in homes(site) if is_below(owner(home), self.island)]
        for home in below:
            # A graph may know the parameter by the embedding's name, which has no state beside it.
            for name in (home, *site.parameters) if site.tied else (home,):
                nodes = self._attributes.get(self._local(name) or "", ())
                if nodes:
                    uses = {user: node for node in nodes for user in node.users if _uses(user)}
                    return relative(home, self.island), uses
        return "", {}

    def _local(self, name: str) -> str | None:
        return relative(name, self.island) if is_below(owner(name), self.island) else None

    def _computed_uses(self, site: Site) -> dict[fx.Node, fx.Node]:
        prefix = f"{self.island}." if self.island else ""
        return {
            consumer: weight
            for consumer, weight, targets in self._computed
            if any(is_below(p, prefix + target) for target in targets for p in site.parameters)
        }


def _uses(node: fx.Node) -> bool:
    """Whether a user of a weight computes with its values."""
    return not _reads_metadata(node) and not _looks_up(node)


def _reads_metadata(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METADATA
    return node.op == "call_function" and node.target is getattr and node.args[1] in _METADATA


def _looks_up(node: fx.Node) -> bool:
    """Whether a node reads rows of a tied embedding, which it does from the dense table."""
    return node.op == "call_function" and node.target in FX_LOOKUPS


def insert_op(
    graph: fx.Graph, uses: SiteUses, site: Site, method: Method, state: tuple[str, ...]
) -> bool:
    """Insert the method's operator for one site.

    Args:
        graph: Mutated.
        uses: The graph's index.
        site: A direct or computed site.
        method: Gives the operator and its constants.
        state: Names of the method's tensors.

    Returns:
        Whether the graph uses the site at all.
    """
    local, users = uses.of(site)
    prefix, parameter = owner(local), local.rpartition(".")[2]
    targets = [f"{prefix}.{state_name(parameter, key)}".lstrip(".") for key in state]
    effective: dict[fx.Node, fx.Node] = {}
    for user, weight in users.items():
        if weight not in effective:  # computed anew at each call of its module
            with graph.inserting_before(weight.next):
                effective[weight] = graph.create_node(
                    "call_function",
                    method.op,
                    (weight, *map(graph.get_attr, targets), *method.arguments(site)),
                    name=f"{local.replace('.', '_')}_effective",
                )
        user.replace_input_with(weight, effective[weight])
    return bool(users)
