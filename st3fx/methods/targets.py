"""Targets of single sites beside the one over all of them (``sparsity_of``).

Each site that a glob names has a target of its own, reached by a threshold of its own; the last
glob that matches counts. The sparsity stays what it is without these: the share over *all* sites.
So the others, which share the global threshold, have what is left of it. With ``n_k`` the weights
of a site and ``s_k`` its own target, ``S`` the sparsity and ``N`` all weights:

    ``s_rest = (S·N − Σ s_k·n_k) / (N − Σ n_k)``

Multiplications stand in the place of weights where these are the budget. Where every site has a
target of its own, ``S`` must be what they amount to.

On the way of a schedule from 0 to ``S``, at a sparsity ``x``, every target is as far as that is:
``s_k·x / S``. Above ``S``, which ``set_sparsity`` can ask for, every site keeps the same share of
what it has left: ``1 − (1 − s_k)(1 − x) / (1 − S)``. So shares stay within 0 and 1, and together
they are ``x``.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from st3fx.errors import MethodError, PlanError, few
from st3fx.methods.base import Method, TargetMethod, pairs_of
from st3fx.plan.sites import Site

SLACK = 1e-3
"""How far the sparsity may be from what the sites' own targets amount to, if all have one."""


@dataclass(frozen=True)
class Target:
    """Sites that share a threshold.

    Attributes:
        sites: Their positions.
        share: The share of what can go that goes; 0: no threshold.
        key: What keeps the search for it apart from the others: empty for the global one.
    """

    sites: tuple[int, ...]
    share: float
    key: str = ""


def own_targets(method: TargetMethod, sites: Sequence[Site]) -> dict[int, float]:
    """Position of a site -> its own final target, for those that have one."""
    if not method.sparsity_of:
        return {}
    return _own(method.own_targets, tuple((site.name, *site.aliases) for site in sites))


@functools.lru_cache(maxsize=16)  # it is asked for at each step
def _own(
    globs: tuple[tuple[str, float], ...], sites: tuple[tuple[str, ...], ...]
) -> dict[int, float]:
    return {
        index: target for index, names in enumerate(sites) for glob, target in globs
        if _matches(glob, names)
    }  # fmt: skip


def named_targets(method: Method, sites: Sequence[Site]) -> tuple[tuple[str, float], ...]:
    """Full name of each site that has a target of its own, and that; as plans have it."""
    if not isinstance(method, TargetMethod):
        return ()
    return tuple((sites[index].name, own) for index, own in own_targets(method, sites).items())


def furthest(own: Mapping[str, float], reached: Mapping[str, float]) -> tuple[str, float]:
    """The site that is furthest from its own target, and how far that is.

    Args:
        own: Targets by full name, at least one.
        reached: Sparsity by full name.
    """
    off = {name: abs(reached[name] - target) for name, target in own.items()}
    worst = max(off, key=off.__getitem__)
    return worst, off[worst]


def held(own: Mapping[str, float], reached: Mapping[str, float]) -> str:
    """How near the sites with targets of their own have come to these, in words.

    Args:
        own: Targets by full name, at least one.
        reached: Sparsity by full name.
    """
    worst, off = furthest(own, reached)
    points = f"{100 * off:.2f}"
    if float(points) == 0:
        return "held"
    return f"held to {points} points ({worst}: {reached[worst]:.2%} of {own[worst]:.2%})"


def _matches(glob: str, names: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names)


def check_targets(method: TargetMethod, sites: Sequence[Site]) -> None:
    """Refuse targets that name no site, or that leave the others an impossible share.

    Raises:
        PlanError: Naming the glob, or what is possible.
    """
    if not method.sparsity_of:
        return
    for glob, _ in method.own_targets:
        if not any(_matches(glob, (site.name, *site.aliases)) for site in sites):
            names = few(site.name for site in sites[:3])
            raise PlanError(f"sparsity_of {glob!r} matches no site: their names are like {names}")
    own = own_targets(method, sites)
    sizes = _sizes(method, sites)
    whole = sum(sizes)
    going = sum(sizes[index] * target for index, target in own.items())
    rest = whole - sum(sizes[index] for index in own)
    what = "multiplications" if method.budget == "macs" else "weights"
    if not rest and abs(going / whole - method.sparsity) > SLACK:
        raise PlanError(
            f"every site has a target of its own, and these amount to a sparsity of "
            f"{going / whole:.4f}, not {method.sparsity:g}: give that, or leave a site without one"
        )
    share = (method.sparsity * whole - going) / rest if rest else 0.0
    if not 0 <= share < 1:
        low, high = math.ceil(1e4 * going / whole) / 1e4, math.floor(
            1e4 * (going + rest) / whole
        ) / 1e4  # fmt: skip
        raise PlanError(
            f"a sparsity of {method.sparsity:g} over all {what} would need {share:.1%} of those "
            f"without a target of their own: with these targets {low:g} to below {high:g} is "
            "possible"
        )


def targets(method: TargetMethod, sites: Sequence[Site], sparsity: float) -> list[Target]:
    """What each threshold has to prune for a sparsity over all sites.

    Where weights are counted one by one, all together prune as many as one threshold would.

    Args:
        method: With its targets.
        sites: All sites, or those that are left of them.
        sparsity: Above 0.
    """
    own = own_targets(method, sites)
    if not own:
        everything = tuple(range(len(sites)))
        return [Target(everything, method.share_of_groups(sparsity))]
    now = {index: _moved(target, method.sparsity, sparsity) for index, target in own.items()}
    rest = tuple(index for index in range(len(sites)) if index not in own)
    found = [Target((index,), share, sites[index].name) for index, share in now.items()]
    return [*found, Target(rest, _rest(method, sites, now, sparsity))] if rest else found


def _moved(target: float, final: float, sparsity: float) -> float:
    """A target at another sparsity than the final one."""
    if sparsity <= final:
        return target * sparsity / final
    return 1 - (1 - target) * (1 - sparsity) / (1 - final)


def _rest(
    method: TargetMethod, sites: Sequence[Site], own: Mapping[int, float], sparsity: float
) -> float:
    """The share of the sites without a target of their own."""
    sizes = _sizes(method, sites)
    left = sum(size for index, size in enumerate(sizes) if index not in own)
    grouped = any(method.granularity.grouping(site) for site in sites)
    if method.budget == "macs" or grouped:
        going = sum(sizes[index] * share for index, share in own.items())
        return min(max((sparsity * sum(sizes) - going) / left, 0.0), 1.0)
    need = _count(sum(sizes), sparsity)
    need -= sum(_count(sizes[index], share) for index, share in own.items())
    # In the middle between two order statistics: the quantile is of so many, however it rounds.
    return min(max((need - 0.5) / max(1, left - 1), 0.0), 1.0) if need > 0 else 0.0


def _count(numel: int, share: float) -> int:
    """How many weights the quantile of a share prunes: those up to it."""
    return math.floor((numel - 1) * share) + 1 if share > 0 else 0


def _sizes(method: TargetMethod, sites: Sequence[Site]) -> list[int]:
    return [site.numel * (site.cost if method.budget == "macs" else 1) for site in sites]


def parse_targets(texts: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """Globs and targets from texts such as ``layer4.*=0.95``.

    Raises:
        MethodError: For a text of another form.
    """
    found = []
    for text in texts:
        glob, _, target = text.rpartition("=")
        try:
            found.append((glob.strip(), float(target)))
        except ValueError:
            found.append(("", 0.0))
        if not found[-1][0]:
            raise MethodError(
                f"sparsity_of {text!r}: give GLOB=SPARSITY, for example 'layer4.*=0.95'"
            )
    return pairs_of(found)
