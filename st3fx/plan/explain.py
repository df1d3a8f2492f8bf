"""Why a weight is sparse or dense, and why a module is a graph or keeps its own forward.

Read from a plan alone, so that it answers for a conversion and for a bundle alike.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from st3fx.errors import PlanError
from st3fx.plan.names import is_below
from st3fx.plan.sites import IslandInfo, OpaqueModule, Site, SkippedSite, SparsityPlan

ROOT = "(the model)"
_SHOWN = 12
"""Names in a list; the rest is counted."""


@dataclass(frozen=True)
class Explanation:
    """What a conversion did with one weight or module.

    Attributes:
        name: Its full name.
        verdict: In one line.
        facts: (what, in words), in the order to be read.
    """

    name: str
    verdict: str
    facts: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """This explanation as JSON values."""
        return dataclasses.asdict(self)


def explain(plan: SparsityPlan, name: str) -> Explanation:
    """Explain a weight or a module.

    Args:
        plan: What the conversion did.
        name: Full name of a weight, any that it has, of a parameter that one is computed from, or
            of a module; ``(the model)`` or the empty
            string for the model itself.

    Raises:
        PlanError: If the plan has nothing of that name, with the nearest names.
    """
    name = "" if name == ROOT else name
    for site in plan.sites:
        if name in (site.name, *site.aliases, *site.parameters):
            targets = (("target", f"{own:g}, of its own") for of, own in plan.targets
                       if of == site.name)  # fmt: skip
            facts = dict.fromkeys((*targets, *_site_facts(site, name), *_run_by(plan, site)))
            return Explanation(name, _verdict(site, name), tuple(facts))
    for skipped in plan.skipped:
        if name in (skipped.name, *skipped.aliases):
            return _dense(skipped, name)
    return _module(plan, name)


def _verdict(site: Site, name: str) -> str:
    shape = "x".join(map(str, site.shape))
    if name in (site.name, *site.aliases):
        return f"sparse: {site.op} multiplies with it ({shape}, {site.numel:,} parameters)"
    if site.tied:
        return f"dense: rows of this table are looked up; its projection {site.name} is sparse"
    return f"sparse: {site.op} multiplies with {site.name} ({shape}), computed from it"


def _dense(item: SkippedSite, name: str) -> Explanation:
    shape = "x".join(map(str, item.shape))
    facts = [("parameters", f"{item.numel:,} ({shape})"), ("operator", item.op)]
    others = [other for other in (item.name, *item.aliases) if other != name]
    facts += [("also called", ", ".join(others))] if others else []
    return Explanation(name, f"dense: {item.reason}", tuple(facts))


def _site_facts(site: Site, name: str) -> Iterator[tuple[str, str]]:
    yield "multiplied in", ", ".join(holder or ROOT for holder in site.holders)
    others = [other for other in (site.name, *site.aliases) if other != name]
    if others and not site.computed:
        yield "also called", ", ".join(others)
    if site.computed:
        yield "computed from", ", ".join(site.parameters)


def _run_by(plan: SparsityPlan, site: Site) -> Iterator[tuple[str, str]]:
    for holder in site.holders:
        island, opaque = _where(plan, holder)
        if island is not None:
            yield from _island_facts(island)
        else:
            yield "runs in", f"the own forward of {holder or ROOT}, with effective weights"
        if opaque is not None:
            yield from _opaque_facts(opaque)


def _where(plan: SparsityPlan, module: str) -> tuple[IslandInfo | None, OpaqueModule | None]:
    """The widest graph that a module is part of, and the module above it that stopped it."""
    islands = {island.name: island for island in plan.islands}
    opaque = {item.name: item for item in plan.opaque}
    found = None
    for name in _upwards(module):
        if name in opaque:
            return found, opaque[name]
        found = islands.get(name, found)
    return found, None


def _upwards(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _island_facts(island: IslandInfo) -> Iterator[tuple[str, str]]:
    modes = ", ".join(island.modes)
    yield "graph", f"of {island.name or ROOT} ({modes}; {island.nodes:,} nodes)"
    for guard in island.guards:
        yield "holds while", guard


def _opaque_facts(item: OpaqueModule) -> Iterator[tuple[str, str]]:
    yield "not captured", f"{item.name or ROOT} ({item.type}): {item.reason}"
    if item.source:
        yield "stopped by", item.source


def _module(plan: SparsityPlan, name: str) -> Explanation:
    below = [
        s for s in plan.sites if any(is_below(n, name) for n in (s.name, *s.aliases, *s.holders))
    ]
    dense = [d for d in plan.skipped if any(is_below(n, name) for n in (d.name, *d.aliases))]
    island, opaque = _where(plan, name)
    if not below and not dense and name not in {item.name for item in plan.opaque}:
        raise PlanError(_unknown(plan, name))
    facts: list[tuple[str, str]] = []
    if island is not None:
        facts += _island_facts(island)
    stopped = [item for item in plan.opaque if item is not opaque and is_below(item.name, name)]
    for item in [opaque, *stopped[:_SHOWN]] if opaque is not None else stopped[:_SHOWN]:
        facts += _opaque_facts(item)
    if len(stopped) > _SHOWN:
        facts.append(("not captured", f"and {len(stopped) - _SHOWN:,} more modules below it"))
    facts += [("sparse", text) for text in _listed([site.name for site in below])]
    facts += [("dense", f"{item.name}: {item.reason}") for item in dense]
    if opaque is not None and opaque.name == name:
        verdict = "keeps its own forward, with effective weights inside"
    elif island is None:
        verdict = "keeps its own forward"
    elif island.name == name:
        verdict = "is captured as a graph"
    else:
        verdict = f"is part of the graph of {island.name or ROOT}"
    return Explanation(name or ROOT, verdict, tuple(facts))


def _listed(names: list[str]) -> list[str]:
    more = [f"and {len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
    return [*names[:_SHOWN], *more]


def _unknown(plan: SparsityPlan, name: str) -> str:
    items: tuple[Site | SkippedSite, ...] = (*plan.sites, *plan.skipped)
    known = {called for item in items for called in (item.name, *item.aliases)}
    known |= {above for full in known for above in _upwards(full.rpartition(".")[0]) if above}
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"nothing called {name!r} multiplies in this model, nor does a part of it{hint}"
