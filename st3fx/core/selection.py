"""Which sites a user wants sparse: include, exclude, and the three flags."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from st3fx.core.sites import Site
from st3fx.errors import PlanError

Selector: TypeAlias = str | type[nn.Module] | Callable[[Site], bool]
"""A glob over full names, a module type, or a predicate on the site."""

Selectors: TypeAlias = Selector | Iterable[Selector] | None


@dataclass(frozen=True)
class Selection:
    """A choice among sites.

    Attributes:
        include: Only sites that one of these matches; empty means all.
        exclude: No site that one of these matches.
        skip_depthwise: Leave out convolutions with one input channel per filter.
        skip_first: Leave out the first site in the order of execution.
        skip_last: Leave out the last site in the order of execution.
        include_tied: Make the projection of a tied embedding sparse; its lookups stay dense.
    """

    include: tuple[Selector, ...] = ()
    exclude: tuple[Selector, ...] = ()
    skip_depthwise: bool = False
    skip_first: bool = False
    skip_last: bool = False
    include_tied: bool = False

    @classmethod
    def of(
        cls,
        include: Selectors,
        exclude: Selectors,
        *,
        skip_depthwise: bool = False,
        skip_first: bool = False,
        skip_last: bool = False,
        include_tied: bool = False,
    ) -> Selection:
        """From what a user passes: nothing, one selector, or several."""
        chosen = _tuple(include), _tuple(exclude)
        return cls(*chosen, skip_depthwise, skip_first, skip_last, include_tied)

    def reasons(self, sites: Sequence[Site], model: nn.Module) -> dict[str, str]:
        """Why sites are left out, by name; sites that are chosen are not in it.

        Raises:
            PlanError: If a glob or a type matches no site at all: most likely a misspelling.
        """
        for selector in (*self.include, *self.exclude):
            literal = isinstance(selector, str | type)
            if literal and not any(_matches(selector, site, model) for site in sites):
                names = ", ".join(site.name for site in sites[:3])
                raise PlanError(
                    f"{_label(selector)} matches no site: the sites' names are like {names}"
                )
        reasons: dict[str, str] = {}
        for index, site in enumerate(sites):
            reason = self._reason(site, index, len(sites), model)
            if reason is not None:
                reasons[site.name] = reason
        return reasons

    def _reason(self, site: Site, index: int, count: int, model: nn.Module) -> str | None:
        if self.include and not any(_matches(s, site, model) for s in self.include):
            return "not in include"
        for selector in self.exclude:
            if _matches(selector, site, model):
                return f"excluded by {_label(selector)}"
        if self.skip_depthwise and site.depthwise:
            return "depthwise (skip_depthwise)"
        if self.skip_first and index == 0:
            return "first site (skip_first)"
        if self.skip_last and index == count - 1:
            return "last site (skip_last)"
        return None


def _tuple(selectors: Selectors) -> tuple[Selector, ...]:
    if selectors is None:
        return ()
    if isinstance(selectors, str | type) or callable(selectors):
        return (selectors,)
    return tuple(selectors)


def _matches(selector: Selector, site: Site, model: nn.Module) -> bool:
    if isinstance(selector, str):
        return any(fnmatch.fnmatchcase(name, selector) for name in (site.name, *site.aliases))
    if isinstance(selector, type):
        owner = site.name.rpartition(".")[0]
        return any(isinstance(model.get_submodule(n), selector) for n in {owner, *site.holders})
    return bool(selector(site))


def _label(selector: Selector) -> str:
    return repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", "lambda")
