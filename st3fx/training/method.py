"""The sparsification method that settings ask for, and whether it arrived where it should."""

from __future__ import annotations

import dataclasses
from typing import Any

from st3fx import methods
from st3fx.errors import TrainError
from st3fx.methods.base import LearnedMethod, Method, ScheduledMethod, TargetMethod
from st3fx.methods.moving import MovingMethod
from st3fx.methods.targets import named_targets, parse_targets
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.sparsity.schedule import CubicSchedule
from st3fx.training.recipes import RECIPES
from st3fx.training.settings import Settings


def layer_sparsity(sparsifier: Sparsifier) -> dict[str, float]:
    """Share of zeros by site. Costs a pass over the weights."""
    return {name: gone / numel for name, (gone, numel) in sparsifier.pruned().items()}


def share(sparsifier: Sparsifier, layers: dict[str, float]) -> float:
    """What the target is a share of: pruned weights, or multiplications that fall away.

    Args:
        sparsifier: With plan and method.
        layers: Share of zeros by site.
    """
    method = sparsifier.method
    macs = isinstance(method, TargetMethod) and method.budget == "macs"
    costs = {s.name: s.numel * (s.cost if macs else 1) for s in sparsifier.plan.sites}
    return sum(cost * layers[name] for name, cost in costs.items()) / sum(costs.values())


def target_now(sparsifier: Sparsifier) -> float | None:
    """The sparsity that the schedule wants after the present step; ``None`` without a schedule."""
    return sparsifier.scheduled


def level(sparsifier: Sparsifier) -> float | None:
    """The global threshold; ``None`` while there is none. Waits for the device."""
    return None if sparsifier.level is None else float(sparsifier.level)


def require_target(sparsifier: Sparsifier, reached: float, steps: int) -> None:
    """Fail if training ended elsewhere than it was asked to.

    Args:
        sparsifier: At the end of training, its thresholds set for the present weights.
        reached: What :func:`share` gives.
        steps: Optimizer steps that were planned.

    Raises:
        TrainError: When the target is missed by more than rounding to whole groups explains.
    """
    method, sites = sparsifier.method, sparsifier.plan.sites
    if not isinstance(method, TargetMethod):
        return
    target = method.reached(sites, method.target)
    # A quantile falls between two groups; the scale of a layer may round one more to either side.
    macs = method.budget == "macs"
    whole = sum(site.numel * (site.cost if macs else 1) for site in sites)
    one = max(method.granularity.largest(site) * (site.cost if macs else 1) for site in sites)
    if abs(reached - target) > (2 + len(sites)) * one / whole + 1e-6:
        raise TrainError(
            f"the final sparsity is {reached:.4f} where {target:.4f} was asked for: the schedule "
            f"counted {sparsifier.steps} of {steps} optimizer steps"
        )


def own_targets(sparsifier: Sparsifier) -> dict[str, float]:
    """Final sparsity of each site that has a target of its own, by its full name."""
    return dict(named_targets(sparsifier.method, sparsifier.plan.sites))


def require_own_targets(sparsifier: Sparsifier, layers: dict[str, float]) -> None:
    """Fail if a site with a target of its own does not hold it.

    Zeros that the model came with may be more than a site's target, and stay.

    Args:
        sparsifier: At the end of training, its thresholds set for the present weights.
        layers: Share of zeros by site.

    Raises:
        TrainError: Naming the site that is furthest off, when that is by more than rounding to
            whole groups explains.
    """
    own, method = own_targets(sparsifier), sparsifier.method
    if not isinstance(method, TargetMethod) or not own:
        return
    # As of all sites together: a quantile falls between two groups, and a scale may round one more.
    missing = {
        site.name: site.numel * (method.reached((site,), own[site.name]) - layers[site.name])
        for site in sparsifier.plan.sites if site.name in own
    }  # fmt: skip
    sizes = {site.name: 2 * method.granularity.largest(site) for site in sparsifier.plan.sites}
    came = sparsifier.run.floor > 0
    off = {k: (count if came else abs(count)) - sizes[k] for k, count in missing.items()}
    worst = max(off, key=off.__getitem__)
    if off[worst] > 0:
        raise TrainError(
            f"{worst} ends with a sparsity of {layers[worst]:.4f} where {own[worst]:.4f} was asked "
            "for by --sparsity-of"
        )


DEFAULT = "st3"


def make_method(settings: Settings) -> Method:
    """A new method.

    Raises:
        TrainError: When a sparsity is asked of a method that learns its thresholds.
        MethodError: For an unknown method or setting, or a value outside its range.
    """
    name = settings.method or DEFAULT
    given = _given(settings, CubicSchedule())
    plain = methods.create(name, **_options(settings))
    _require_fitting(plain, settings, given)
    if isinstance(plain, LearnedMethod) and given:
        raise TrainError(
            f"{name} learns its thresholds, and has no {' or '.join(given)}: leave that out, or "
            "take another --method"
        )
    return methods.create(name, **given, **_options(settings))


def adjusted(method: Method, settings: Settings) -> Method:
    """A bundle's method with the sparsity, the budget and the ramp that settings ask for.

    Raises:
        TrainError: When they ask for another method: the bundle's graphs are made for its own.
    """
    name = methods.key_of(method)
    if settings.method not in (None, method.name, name) or settings.method_options:
        raise TrainError(
            f"the bundle was converted for {name}: convert the model again for another "
            "--method or --method-option"
        )
    if settings.granularity not in (None, method.granularity.text):
        raise TrainError(
            f"the bundle was converted for {method.granularity.text}: convert the model again for "
            f"--granularity {settings.granularity}"
        )
    schedule = method.schedule if isinstance(method, ScheduledMethod) else CubicSchedule()
    given = _given(settings, schedule)
    _require_fitting(method, settings, given)
    if given and not isinstance(method, TargetMethod):
        raise TrainError(f"{method.name} learns its thresholds, and has no {' or '.join(given)}")
    return dataclasses.replace(method, **given)


def _require_fitting(method: Method, settings: Settings, given: dict[str, Any]) -> None:
    """Refuse what a method does not have; leave a recipe's ramp out where there is none.

    Args:
        method: The method, or one of its class.
        settings: What is asked for.
        given: What these say of a method; changed.

    Raises:
        TrainError: For a sparsity to be drawn where none can be set for a step, or a ramp or steps
            between thresholds of a method whose masks move by rules of its own.
    """
    name, moves = methods.key_of(method), isinstance(method, MovingMethod)
    if settings.draw_sparsity and not isinstance(method, ScheduledMethod):
        why = "keeps its masks for many steps" if moves else "learns its thresholds"
        raise TrainError(
            f"{name} {why}: no sparsity can be drawn for a step; leave "
            "--draw-sparsity out, or take a --method with a schedule, e.g. st3"
        )
    if moves and settings.update_every != 1:
        raise TrainError(f"{name} has steps of its own for its masks: leave --update-every out")
    if moves and "schedule" in given and not hasattr(method, "schedule"):
        recipe = RECIPES.get(settings.recipe or "", {})
        if tuple(recipe.get("ramp", ())) != tuple(settings.ramp):
            raise TrainError(
                f"{name} has no ramp: leave --ramp out; --method-option sets when its masks move"
            )
        del given["schedule"]


def _given(settings: Settings, schedule: CubicSchedule) -> dict[str, Any]:
    """What settings say of a method; of its schedule they may say a part."""
    given: dict[str, Any] = {}
    if settings.sparsity is not None:
        given["sparsity"] = settings.sparsity
    if settings.sparsity_of:
        given["sparsity_of"] = parse_targets(settings.sparsity_of)
    if settings.budget != "weights":
        given["budget"] = settings.budget
    if settings.ramp:
        schedule = CubicSchedule(
            settings.ramp[0], settings.ramp[1], draw=schedule.draw, seed=schedule.seed
        )
        given["schedule"] = schedule
    if settings.draw_sparsity:
        low, high = settings.draw_sparsity
        given["schedule"] = dataclasses.replace(schedule, draw=(low, high), seed=settings.seed)
    return given


def _options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if settings.granularity is not None:
        options["granularity"] = settings.granularity
    return options | methods.own_settings(settings.method_options)
