"""Which sites a user wants sparse: include, exclude, and the flags."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from st3fx.errors import PlanError
from st3fx.plan.names import is_below, owner, submodule
from st3fx.plan.settings import ConversionSettings
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


def named(settings: ConversionSettings, model: nn.Module) -> ConversionSettings:
    """Settings whose selectors know modules and parameters by name: the model may be copied.

    Raises:
        PlanError: If a selector is no part of the model.
    """
    include, exclude = (
        tuple(_named(selector, model) for selector in selectors)
        for selectors in (settings.include, settings.exclude)
    )
    return dataclasses.replace(settings, include=include, exclude=exclude)


def wants(settings: ConversionSettings, site: Site, model: nn.Module) -> bool:
    """Whether neither ``include`` nor ``exclude`` leaves a site out."""
    included = not settings.include or any(_matches(s, site, model) for s in settings.include)
    return included and not any(_matches(s, site, model) for s in settings.exclude)


def reasons(
    settings: ConversionSettings,
    sites: Sequence[Site],
    model: nn.Module,
    apart: Mapping[str, str],
    dense: Iterable[str],
) -> dict[str, str]:
    """Why sites are left out, by name; sites that are chosen are not in it.

    Args:
        settings: What the user wants sparse.
        sites: All sites, in the order of execution.
        model: Their model.
        apart: Sites that are left out unless a selector of ``include`` matches only such, with
            the reason.
        dense: Names of weights that are no sites for other reasons.

    Raises:
        PlanError: If a glob, a type or a part matches no weight: most likely a misspelling.
    """
    weights = [*sites, *(Site(n, (n,), (), "", Layout(), (owner(n),)) for n in dense)]
    for selector in (*settings.include, *settings.exclude):
        literal = isinstance(selector, str | type | Part)
        if literal and not any(_matches(selector, weight, model) for weight in weights):
            names = ", ".join(site.name for site in sites[:3])
            raise PlanError(
                f"{_label(selector)} matches no site: the sites' names are like {names}"
            )
    found: dict[str, str] = {}
    for index, site in enumerate(sites):
        reason = _reason(settings, site, index, len(sites), model)
        if reason is None and site.name in apart and not _asks(settings, site, sites, model, apart):
            reason = apart[site.name]
        if reason is not None:
            found[site.name] = reason
    return found


def _asks(
    settings: ConversionSettings,
    site: Site,
    sites: Sequence[Site],
    model: nn.Module,
    apart: Mapping[str, str],
) -> bool:
    """Whether a selector of ``include`` names a site that is left out otherwise."""
    usual = [other for other in sites if other.name not in apart]
    return any(
        _matches(selector, site, model)
        and not any(_matches(selector, other, model) for other in usual)
        for selector in settings.include
    )


def _reason(
    settings: ConversionSettings, site: Site, index: int, count: int, model: nn.Module
) -> str | None:
    if settings.include and not any(_matches(s, site, model) for s in settings.include):
        return "not in include"
    for selector in settings.exclude:
        if _matches(selector, site, model):
            return f"excluded by {_label(selector)}"
    if settings.skip_depthwise and site.depthwise:
        return "depthwise (skip_depthwise)"
    if settings.skip_first and index == 0:
        return "first site (skip_first)"
    if settings.skip_last and index == count - 1:
        return "last site (skip_last)"
    return None


def selectors_of(selectors: Selectors) -> tuple[Selector, ...]:
    """From what a user passes: nothing, one selector, or several."""
    if selectors is None:
        return ()
    if isinstance(selectors, str | type | nn.Module | Tensor | Part) or callable(selectors):
        return (selectors,)
    return tuple(selectors)


def _named(selector: Selector, model: nn.Module) -> Selector:
    """A module or parameter by its names: the model is copied before it is converted."""
    if not isinstance(selector, nn.Module | Tensor):
        return selector
    parts: Iterable[tuple[str, nn.Module | Tensor]]
    if isinstance(selector, nn.Module):
        parts = model.named_modules(remove_duplicate=False)
    else:
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
