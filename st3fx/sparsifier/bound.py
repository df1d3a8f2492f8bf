"""The sites of a converted model as they are now: the modules that own them, and what has drifted.

A site is known by the mark that its module carries, not by its path alone: a module that was moved
(below a LoRA layer, say) takes its site along. What has gone (an ``Identity`` in place of the head)
leaves the plan, with a warning. What was replaced (another layer, a parameter that was assigned) is
named in an error: the model has another weight there than the one that was trained sparse.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from st3fx.errors import DriftWarning, StateError, few
from st3fx.graphs.graph import CompiledGraph
from st3fx.modules import rnn
from st3fx.modules.marks import (
    COMPUTE,
    ENDED,
    SITES,
    Sparse,
    Speaker,
    change_conversion,
    conversion_of,
    has_site,
    homes,
    state_name,
)
from st3fx.modules.state import preserved
from st3fx.plan.sites import Site, SkippedSite
from st3fx.sparsity.drawing import decided
from st3fx.sparsity.formula import Inputs
from st3fx.sparsity.shards import whole

ASSIGNED = "another parameter was assigned"
"""How a site is replaced by those who have read its effective weight, as tools that fuse layers."""


@dataclass(frozen=True)
class Bound:
    """A site and the modules that own it.

    Attributes:
        site: From the plan.
        owner: The module that has the parameter and the state.
        parameter: The parameter's name there.
        sparse: The module's mark.
        places: All modules and names under which the site's state is kept: several if tied.
        compute: For a computed weight, its graph as a function of the owner.
    """

    site: Site
    owner: nn.Module
    parameter: str
    sparse: Sparse
    places: tuple[tuple[nn.Module, str], ...]
    compute: CompiledGraph | None = None

    def weight(self) -> Tensor:
        """The weight before the threshold; a computed one as in eval mode, without gradient."""
        if self.compute is None:
            parameter: Tensor = self.owner._parameters[self.parameter]  # type: ignore[assignment]
            return parameter
        with preserved(self.owner), torch.no_grad():
            for module in self.owner.modules():  # not by eval(), at which thresholds are looked at
                module.training = False
            weight: Tensor = self.compute(self.owner)
            return weight

    def sources(self) -> list[Tensor]:
        """The parameters that the weight is, or is computed from."""
        if self.compute is None:
            return [self.weight()]
        return list(self.owner.parameters())

    def learned(self) -> list[Tensor]:
        """The method's tensors, beside the threshold, that the optimizer trains."""
        keys = self.sparse.method.learned
        return [getattr(self.owner, state_name(self.parameter, key)) for key in keys]

    def watched(self) -> list[Tensor]:
        """All that thresholds are set for."""
        return [*self.sources(), *self.learned()]

    def has_mask(self) -> bool:
        """Whether a mask holds weights at zero, or may."""
        return bool(self.tensors("mask")[0].numel())

    def held(self) -> int:
        """How many weights the mask holds at zero."""
        mask = self.tensors("mask")[0]
        return mask.numel() - int(mask.count_nonzero())

    def searched(self) -> Tensor:
        """What the global threshold is one of: the weight, or its probabilities."""
        learned = self.learned()
        return learned[0] if learned else self.weight()

    def inputs(self) -> Inputs:
        """What the effective weight is computed from."""
        return self.sparse.inputs(self.owner, self.parameter, self.weight())

    def effective(self) -> Tensor:
        """The effective weight, with gradients to the latent one."""
        return self.sparse.method.op(*self.inputs()[1:4], *self.inputs().constants)

    def static(self) -> Tensor:
        """The effective weight, without gradient; gathered where the weight is sharded.

        Where a mask is drawn, it is what is left without a draw.
        """
        inputs = self.inputs()
        constants = (*map(whole, inputs.learned), *inputs.constants[len(inputs.learned) :])
        threshold = decided(whole(inputs.threshold))
        inputs = inputs._replace(
            weight=whole(inputs.weight), threshold=threshold, constants=constants
        )
        out = torch.empty_like(inputs.weight, requires_grad=False)
        with torch.no_grad():
            inputs.evaluate(out)
        return out

    def tensors(self, key: str) -> list[Tensor]:
        """One of the method's tensors, under each of the site's names."""
        return [getattr(module, state_name(name, key)) for module, name in self.places]

    def put(self, tensor: Tensor) -> None:
        """Make ``tensor`` what the model's own forwards read."""
        for module, name in self.places:
            rnn.put(module, name, tensor)


def marks(model: nn.Module) -> Iterator[tuple[nn.Module, str, Sparse]]:
    """All sites in a model, of whichever conversion: module, parameter, mark."""
    for module in model.modules():
        for parameter, sparse in module.__dict__.get(SITES, {}).items():
            yield module, parameter, sparse


def part_sites(modules: Iterable[nn.Module], run: Speaker) -> list[Bound]:
    """The sites of a run in some modules of a model, by the marks that these carry."""
    places: dict[str, list[tuple[nn.Module, str, Sparse]]] = {}
    for module in modules:
        for parameter, sparse in module.__dict__.get(SITES, {}).items():
            if sparse.run is run and is_present(module, parameter, sparse):
                places.setdefault(sparse.site.name, []).append((module, parameter, sparse))
    return [_bound(places[name]) for name in sorted(places)]


def _bound(places: list[tuple[nn.Module, str, Sparse]]) -> Bound:
    owner, parameter, sparse = places[0]
    pairs = tuple((module, name) for module, name, _ in places)
    compute = owner.__dict__.get(COMPUTE, {}).get(parameter)
    return Bound(sparse.site, owner, parameter, sparse, pairs, compute)


def is_present(module: nn.Module, parameter: str, sparse: Sparse) -> bool:
    """Whether a marked module has the parameter, and a class that gives its effective weight."""
    return sparse.site.computed or (
        module._parameters.get(parameter) is not None and has_site(module, parameter)
    )


def bound_sites(
    root: nn.Module,
    run: Speaker,
    *,
    quiet: bool = False,
    report: Callable[[Site, str, str], Any] | None = None,
) -> list[Bound]:
    """The sites of ``root``'s plan that are still there.

    Args:
        root: The converted model; what has gone leaves its plan.
        run: Its run.
        quiet: Leave replaced sites out instead of raising.
        report: Called for a replaced site: with it, the reason, and what is to be said.

    Raises:
        StateError: For the first site that was replaced.
    """
    found, moved = [], None
    for site in conversion_of(root).plan.sites:
        places = [place for home in homes(site) if (place := _at(root, home, site, run))]
        if len(places) < len(homes(site)):
            if moved is None:
                moved = _by_name(root, run)
            known = {(id(module), name) for module, name, _ in places}
            places += [p for p in moved.get(site.name, ()) if (id(p[0]), p[1]) not in known]
        if places:
            found.append(_bound(places))
            if not quiet:
                _require_one(found[-1])
            continue
        reason = replaced(root, site, run)
        if reason is None:
            drop(root, site.name, "no longer in the model")
            run.warn(
                f"{site.name} is no longer in the model: its site is left out of the sparsity",
                DriftWarning,
            )
            continue
        message = (
            f"{site.name} was replaced after the conversion ({reason}) and has no threshold any "
            f"more: sparsifier.drop({site.name!r}) goes on without it, or fold first, change the "
            "model, and convert again"
        )
        if report is not None:
            report(site, reason, message)
        if not quiet:
            raise StateError(message)
    return found


def _require_one(item: Bound) -> None:
    """Refuse a tied weight of which there are two: each was split over processes by itself.

    Raises:
        StateError: Then.
    """
    if item.compute is not None or not isinstance(item.weight(), DTensor):
        return  # one that is loaded or made anew may be two for a while
    if any(module._parameters.get(name) is not item.weight() for module, name in item.places[1:]):
        names = f"{item.site.name} and {few(item.site.aliases)}"
        raise StateError(
            f"{names} were one weight when they were converted and are not any more, since each "
            "was split by itself: leave both out of the plan of parallelize_module, or convert "
            "with exclude= for it"
        )


def _at(
    root: nn.Module, home: str, site: Site, run: Speaker
) -> tuple[nn.Module, str, Sparse] | None:
    """A site's module by the path that it had at the conversion."""
    path, _, parameter = home.rpartition(".")
    module: Any = root
    for part in path.split(".") if path else ():
        module = module._modules.get(part) if isinstance(module, nn.Module) else None
    if module is None:
        return None
    sparse = module.__dict__.get(SITES, {}).get(parameter)
    if sparse is None or sparse.run is not run or sparse.site.name != site.name:
        return None
    return (module, parameter, sparse) if is_present(module, parameter, sparse) else None


def _by_name(root: nn.Module, run: Speaker) -> dict[str, list[tuple[nn.Module, str, Sparse]]]:
    """Sites by the marks that modules carry, wherever they are."""
    table: dict[str, list[tuple[nn.Module, str, Sparse]]] = {}
    for module, parameter, sparse in marks(root):
        if sparse.run is run and is_present(module, parameter, sparse):
            table.setdefault(sparse.site.name, []).append((module, parameter, sparse))
    return table


def replaced(root: nn.Module, site: Site, run: Speaker) -> str | None:
    """What stands in a site's place; ``None`` if nothing does, or another site that was moved."""
    path, _, parameter = site.name.rpartition(".")
    with contextlib.suppress(AttributeError):
        module = root.get_submodule(path)
        if parameter in module.__dict__.get(ENDED, ()):
            return ASSIGNED
        own: Sparse | None = module.__dict__.get(SITES, {}).get(parameter)
        if own is not None and not has_site(module, parameter):
            return f"the class of {path or 'the model'} was set to {type(module).__name__}"
        if own is not None and own.run is run and own.site.name != site.name:
            return None
        if parameter in module._buffers or module._parameters.get(parameter) is not None:
            return f"{path or 'the model'} is another {type(module).__name__}"
        names = [name for name, _ in module.named_parameters() if parameter in name]
        if names:
            return f"{path or 'the model'} has {names[0]} instead"
    return None


def drop(root: nn.Module, name: str, reason: str) -> None:
    """Take a site out of the plan of ``root``."""
    plan = conversion_of(root).plan
    site = next(site for site in plan.sites if site.name == name)
    sites = tuple(other for other in plan.sites if other is not site)
    skipped = (*plan.skipped, SkippedSite(site.name, site.shape, site.op, reason))
    change_conversion(root, plan=dataclasses.replace(plan, sites=sites, skipped=skipped))
