"""Which sites a user wants sparse: include, exclude, and the flags."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from st3fx.errors import PlanError
from st3fx.plan.names import is_below, owner, submodule
from st3fx.plan.sites import Layout, Site


@dataclass(frozen=True)
class Part:
    """A module, or a parameter, of the model that is converted.

    Attributes:
        names: All of its full names.
        label: How it is called in messages.
    """

    names: tuple[str, ...]
    label: str

    def matches(self, site: Site) -> bool:
        """Whether a site's parameter lies in it, or is multiplied with in it."""
        own = {site.name, *site.aliases, *site.holders}
        return any(is_below(name, part) for name in own for part in self.names)


Selector: TypeAlias = str | type[nn.Module] | nn.Module | Tensor | Part | Callable[[Site], bool]
"""A glob over full names, a module type, a module or parameter of the model, or a predicate on the
site."""

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
        model: nn.Module | None = None,
    ) -> Selection:
        """From what a user passes: nothing, one selector, or several.

        Args:
            include: See :class:`Selection`, as all the others.
            exclude: As there.
            skip_depthwise: As there.
            skip_first: As there.
            skip_last: As there.
            include_tied: As there.
            model: The one that modules and parameters among the selectors are parts of.

        Raises:
            PlanError: If one is no part of it.
        """
        chosen = [tuple(_named(s, model) for s in _tuple(given)) for given in (include, exclude)]
        return cls(chosen[0], chosen[1], skip_depthwise, skip_first, skip_last, include_tied)

    def wants(self, site: Site, model: nn.Module) -> bool:
        """Whether neither ``include`` nor ``exclude`` leaves a site out."""
        included = not self.include or any(_matches(s, site, model) for s in self.include)
        return included and not any(_matches(s, site, model) for s in self.exclude)

    def reasons(
        self,
        sites: Sequence[Site],
        model: nn.Module,
        apart: Mapping[str, str] | None = None,
        dense: Iterable[str] = (),
    ) -> dict[str, str]:
        """Why sites are left out, by name; sites that are chosen are not in it.

        Args:
            sites: All sites, in the order of execution.
            model: Their model.
            apart: Sites that are left out unless a selector of ``include`` matches only such, with
                the reason.
            dense: Names of weights that are no sites for other reasons.

        Raises:
            PlanError: If a glob, a type or a part matches no weight: most likely a misspelling.
        """
        apart = apart or {}
        weights = [*sites, *(Site(n, (n,), (), "", Layout(), (owner(n),)) for n in dense)]
        for selector in (*self.include, *self.exclude):
            literal = isinstance(selector, str | type | Part)
            if literal and not any(_matches(selector, weight, model) for weight in weights):
                names = ", ".join(site.name for site in sites[:3])
                raise PlanError(
                    f"{_label(selector)} matches no site: the sites' names are like {names}"
                )
        reasons: dict[str, str] = {}
        for index, site in enumerate(sites):
            reason = self._reason(site, index, len(sites), model)
            if reason is None and site.name in apart and not self._asks(site, sites, model, apart):
                reason = apart[site.name]
            if reason is not None:
                reasons[site.name] = reason
        return reasons

    def _asks(
        self, site: Site, sites: Sequence[Site], model: nn.Module, apart: Mapping[str, str]
    ) -> bool:
        """Whether a selector of ``include`` names a site that is left out otherwise."""
        usual = [other for other in sites if other.name not in apart]
        return any(
            _matches(selector, site, model)
            and not any(_matches(selector, other, model) for other in usual)
            for selector in self.include
        )

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
    if isinstance(selectors, str | type | nn.Module | Tensor | Part) or callable(selectors):
        return (selectors,)
    return tuple(selectors)


def _named(selector: Selector, model: nn.Module | None) -> Selector:
    """A module or parameter by its names: the model is copied before it is converted."""
    if not isinstance(selector, nn.Module | Tensor):
        return selector
    parts: Iterable[tuple[str, nn.Module | Tensor]] = ()
    if model is not None and isinstance(selector, nn.Module):
        parts = model.named_modules(remove_duplicate=False)
    elif model is not None:
        parts = model.named_parameters(remove_duplicate=False)
    names = tuple(name for name, part in parts if part is selector)
    label = type(selector).__name__
    if not names:
        raise PlanError(f"a {label} that include= or exclude= was given is no part of the model")
    return Part(names, f"{label} {names[0]}".rstrip())


def _matches(selector: Selector, site: Site, model: nn.Module) -> bool:
    if isinstance(selector, str):
        return any(fnmatch.fnmatchcase(name, selector) for name in (site.name, *site.aliases))
    if isinstance(selector, type):
        owners = {owner(site.name), *site.holders}
        return any(isinstance(submodule(model, name), selector) for name in owners)
    if isinstance(selector, Part):
        return selector.matches(site)
    return bool(selector(site))  # type: ignore[operator]


def _label(selector: Selector) -> str:
    if isinstance(selector, Part):
        return selector.label
    return repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", "lambda")
