"""Islands: which modules are captured as graphs, and which keep their own forward.

A module is traced as a whole where that works. Where it does not, it keeps its own forward and its
children are tried; a submodule that could not be traced stays a call inside its parent's graph and
becomes an island, or several, of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from st3fx import under_way
from st3fx.errors import TraceError
from st3fx.modules.state import settled
from st3fx.passes.convert.discover import Discovery
from st3fx.passes.convert.observation import Observation, Seen
from st3fx.passes.trace import Capture, capture, source_line, writes_in
from st3fx.plan.names import is_below
from st3fx.plan.sites import OpaqueModule

MAX_GRAPHS = 8
"""Graphs of one island: train and eval for up to four structures of calls."""


@dataclass
class Archipelago:
    """All islands of a model.

    Attributes:
        captures: Full name of the island's module -> its graphs as (mode, capture).
        opaque: Modules above or beside the islands that keep their own forward.
    """

    captures: dict[str, list[tuple[str, Capture]]] = field(default_factory=dict)
    opaque: list[OpaqueModule] = field(default_factory=list)

    @property
    def repeated(self) -> bool:
        """Whether a trace was given again for another module."""
        return any(one.repeated for pairs in self.captures.values() for _, one in pairs)


class _Builder:
    def __init__(
        self,
        model: nn.Module,
        observation: Observation,
        found: Discovery,
        dropped: set[str],
        repeat: bool,
    ) -> None:
        self.model = model
        self.repeat = repeat
        self.observation = observation
        self.found = found
        self.dropped = dropped
        self.sites_in = found.modules_with_sites()
        self.flags = {mode: _training_flags(model, mode) for mode in (True, False)}
        self.result = Archipelago()

    def visit(self, name: str) -> None:
        """Capture a module, or its children, or its untraceable submodules."""
        if name in self.result.captures or any(item.name == name for item in self.result.opaque):
            return
        module = self.model.get_submodule(name)
        try:
            captures = self._capture(name, module)
        except TraceError as error:
            line = source_line(error)
            self.result.opaque.append(OpaqueModule(name, type(module).__name__, str(error), line))
            self._children(name, module)
            return
        if captures:
            self.result.captures[name] = captures
            for _, capture in captures:
                for leaf in capture.leaves:
                    self.visit(f"{name}.{leaf}" if name else leaf)
        else:  # never called itself: a container, or a module whose parts are called one by one
            self._children(name, module)

    def _children(self, name: str, module: nn.Module) -> None:
        for child, _ in module.named_children():
            full = f"{name}.{child}" if name else child
            if full in self.sites_in:
                self.visit(full)

    def _capture(self, name: str, module: nn.Module) -> list[tuple[str, Capture]]:
        if name in self.dropped:
            raise TraceError("its graph did not compute what the module computes")
        captures: list[tuple[str, Capture]] = []
        for seen in self.observation.calls.get(name, ())[:MAX_GRAPHS]:
            modes = ("both", "train" if seen.training else "eval")
            if any(mode in modes and known.spec.covers(seen.spec) for mode, known in captures):
                continue
            found = self._trace(name, module, seen)
            self._check_leaves(name, found)
            self._check_writes(name, found)
            reads_mode = any(guard.attribute == "training" for guard in found.guards)
            mode = "both" if not reads_mode else "train" if seen.training else "eval"
            captures.append((mode, found))
        return captures

    def _trace(self, name: str, module: nn.Module, seen: Seen) -> Capture:
        below = [(m, m.training) for m in module.modules()]
        try:
            for child, _ in below:
                child.training = self.flags[seen.training][child]
            with settled(self.observation.left[seen.run]):
                return capture(name, module, seen.spec, self.sites_in, repeat=self.repeat)
        finally:
            for child, flag in below:
                child.training = flag

    def _check_writes(self, name: str, capture: Capture) -> None:
        """A graph must not write to a weight whose threshold stands right behind the parameter.

        Raises:
            TraceError: With the weight.
        """
        sites = [site for site in self.found.sites if not site.computed]
        direct = {home for site in sites for home in (site.name, *site.aliases)}
        for target in writes_in(capture.graph):
            full = f"{name}.{target}" if name else target
            if full in direct:
                raise TraceError(f"writes to {target} while it runs")

    def _check_leaves(self, name: str, capture: Capture) -> None:
        """A weight that an opaque submodule uses must be held there, not above it in the graph.

        Raises:
            TraceError: With the submodule and what stopped its trace.
        """
        for leaf, reason in capture.leaves.items():
            full = f"{name}.{leaf}" if name else leaf
            for site in self.found.sites:
                inside = any(is_below(user, full) for user in self.found.users[site.name])
                if inside and not any(is_below(holder, full) for holder in site.holders):
                    raise TraceError(f"{leaf}: {reason}")


def _training_flags(model: nn.Module, mode: bool) -> dict[nn.Module, bool]:
    """Each module's ``training`` after ``model.train(mode)``, which users may override."""
    before = {module: module.training for module in model.modules()}
    model.train(mode)
    flags = {module: module.training for module in before}
    for module, flag in before.items():
        module.training = flag
    return flags


def capture_islands(
    model: nn.Module,
    observation: Observation,
    found: Discovery,
    dropped: set[str],
    *,
    repeat: bool = True,
) -> Archipelago:
    """Capture a model in as few graphs as tracing allows.

    Args:
        model: Left as it was.
        observation: How each module is called.
        found: The sites.
        dropped: Modules whose graphs failed verification; they keep their own forward.
        repeat: Whether of blocks that repeat only one is traced.
    """
    builder = _Builder(model, observation, found, dropped, repeat)
    under_way.begin(len(builder.sites_in))
    builder.visit("")
    return builder.result
