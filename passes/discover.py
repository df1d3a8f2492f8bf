"""Discover: from what was observed to the sites, and the reason for each weight that is none.

1. A parameter that only multiplies, as it is or seen through views, is a site.
2. A parameter from which the multiplied weight is computed (weight standardisation,
   ``weight_norm``) is a site after the computation, where the multiplying forward can be traced.
3. The projection of a tied embedding is a site where the user asks for it: its own forward
   multiplies with the effective weight, and the embedding's lookups read the dense table.
4. Everything else that multiplies is skipped: a vector, a weight that is also read otherwise or
   that the forward writes to, a weight computed in a forward that cannot be traced, an adapter's
   factor, what the user leaves out.
5. So is what reaches an output without multiplying; and a layer's weight that does not multiply
   at all in the example. So every parameter that an output depends on is in one list or the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from st3fx.core.kinds import is_dense
from st3fx.core.selection import Selection
from st3fx.core.sites import Layout, Site, SkippedSite
from st3fx.errors import PlanError, TraceError
from st3fx.passes.adapters import REASON as ADAPTER
from st3fx.passes.adapters import adapter_factors
from st3fx.passes.beside import beside, require_complete
from st3fx.passes.computed import ComputedWeight, computed_weights
from st3fx.passes.layers import idle
from st3fx.passes.masked import require_unmasked
from st3fx.passes.names import ancestors, is_below, owner, submodule
from st3fx.passes.observation import Multiplication, Observation
from st3fx.passes.operators import LOOKUPS
from st3fx.passes.tied import projection


@dataclass
class Discovery:
    """What :func:`discover` found.

    Attributes:
        sites: In the order of execution.
        skipped: Multiplying parameters that stay dense.
        users: Site name -> all modules whose forward multiplies with it (holders and below).
        computed: Site name -> how the holder's forward computes it.
    """

    sites: list[Site] = field(default_factory=list)
    skipped: list[SkippedSite] = field(default_factory=list)
    users: dict[str, set[str]] = field(default_factory=dict)
    computed: dict[str, ComputedWeight] = field(default_factory=dict)

    def skip(self, name: str, reason: str) -> None:
        """Leave a site dense after all."""
        site = next(site for site in self.sites if site.name == name)
        self.sites.remove(site)
        self.skipped.append(SkippedSite(site.name, site.shape, site.op, reason))
        del self.users[name]
        self.computed.pop(name, None)

    def leave_out(self, model: nn.Module, name: str, op: str, reason: str) -> None:
        """Leave a parameter dense."""
        self.skipped.append(SkippedSite(name, tuple(_parameter(model, name).shape), op, reason))

    def modules_with_sites(self) -> set[str]:
        """Modules that a trace has to look into: all that multiply with a site, and those above."""
        return {name for users in self.users.values() for user in users for name in ancestors(user)}


def discover(model: nn.Module, observation: Observation, selection: Selection) -> Discovery:
    """Sort every parameter that multiplies into sites and skipped sites.

    Args:
        model: The model that was observed.
        observation: What it does.
        selection: What the user wants sparse.

    Raises:
        PlanError: If nothing multiplies, or nothing that does can or may become sparse.
    """
    found = Discovery()
    aliases = _aliases(model)
    pruned = require_unmasked(
        model, {n: uses[0].op for n, uses in observation.multiplied().items()}, selection
    )
    for name, uses in observation.multiplied().items():
        if name in pruned:
            found.leave_out(model, name, uses[0].op, pruned[name])
            continue
        site = _direct_site(model, name, uses, observation, aliases[name])
        if isinstance(site, Site) and observation.other_uses.get(name):
            site = projection(site, observation, include=selection.include_tied)
        if isinstance(site, Site):
            _add(found, site, _users(name, uses, observation))
        elif isinstance(site, SkippedSite):
            found.skipped.append(site)
        else:
            _add_computed(found, model, observation, name, uses)
    found.skipped += beside(model, observation)
    found.skipped += idle(model, observation.reached())
    _select(found, model, selection)
    require_complete(model, observation, found.sites, found.skipped)
    if not found.sites:
        raise PlanError(nothing_to_do(model, found))
    return found


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each parameter -> its other names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: tuple(others) for first, *others in names.values()}


def _direct_site(
    model: nn.Module,
    name: str,
    uses: list[Multiplication],
    observation: Observation,
    aliases: tuple[str, ...],
) -> Site | SkippedSite | None:
    """The site of a parameter, why it is none, or ``None`` for a computed weight."""
    parameter = _parameter(model, name)
    shape, dtype = tuple(parameter.shape), parameter.dtype
    first = uses[0]
    reason = None
    others = observation.other_uses.get(name, set())
    if not parameter.numel():
        reason = "it is empty"
    elif not is_dense(parameter):
        reason = f"a {parameter.layout} tensor: its zeros are not stored as it is"
    elif not dtype.is_floating_point:
        reason = f"{dtype}: only real floating-point weights have a magnitude to prune by"
    elif len(shape) < 2:
        reason = f"a vector of {shape[0] if shape else 1}: too few weights to prune"
    elif others - LOOKUPS:
        reason = f"also read by {', '.join(sorted(others))}"
    elif any(isinstance(submodule(model, n), _SCRIPT) for n in _involved(name, uses)):
        reason = "inside a ScriptModule"
    elif len({use.computed for use in uses}) == 2 and name not in observation.written:
        reason = "multiplied both as it is and after a computation"
    if reason is not None:
        return SkippedSite(name, shape, first.op, reason)
    if first.computed or name in observation.written:
        return None
    layouts = {use.layout for use in uses}
    return Site(
        name=name,
        parameters=(name,),
        shape=shape,
        op=first.op,
        layout=first.layout if len(layouts) == 1 else Layout(()),
        holders=_outermost(_users(name, uses, observation)),
        aliases=aliases,
        groups=first.groups,
        cost=max(1, observation.macs.get(name, 0) // max(1, parameter.numel())),
    )


WRITTEN = "the forward writes to it: a threshold would meet other values in each call"


def _users(name: str, uses: list[Multiplication], observation: Observation) -> set[str]:
    """Modules whose own forward multiplies with a weight, or computes with its values beside that.

    Lookups in an embedding's table compute with the table as it is.
    """
    modules = {use.module for use in uses}
    is_table = bool(observation.other_uses.get(name))
    return modules if is_table else modules | observation.computing.get(name, set())


def _parameter(model: nn.Module, name: str) -> Tensor:
    parameter: Tensor = getattr(submodule(model, owner(name)), name.rpartition(".")[2])
    return parameter


_SCRIPT = torch.jit.ScriptModule


def _involved(name: str, uses: list[Multiplication]) -> set[str]:
    return {owner(name), *(use.module for use in uses)}


def _outermost(users: set[str]) -> tuple[str, ...]:
    """The users that are not below another: a swap around them covers those below."""
    return tuple(
        sorted(u for u in users if not any(u != other and is_below(u, other) for other in users))
    )


def _add(found: Discovery, site: Site, users: set[str]) -> None:
    found.sites.append(site)
    found.users[site.name] = users


def _add_computed(
    found: Discovery,
    model: nn.Module,
    observation: Observation,
    name: str,
    uses: list[Multiplication],
) -> None:
    """Case 2: the sites of the module that computes, once for all of its parameters."""
    if any(name in site.parameters for site in found.sites):
        return
    try:
        weight = _computed_weight(model, observation, name, uses)
    except TraceError as error:
        reason = WRITTEN if name in observation.written else f"computed {error}"
        found.leave_out(model, name, uses[0].op, reason)
        return
    _add(found, weight.site, set(weight.site.holders))
    found.computed[weight.site.name] = weight


def _computed_weight(
    model: nn.Module, observation: Observation, name: str, uses: list[Multiplication]
) -> ComputedWeight:
    """The computed weight that a parameter goes into.

    Raises:
        TraceError: If there is none that a threshold could stand behind.
    """
    modules = {use.module for use in uses}
    if len(modules) > 1:
        raise TraceError(f"in {len(modules)} places: {', '.join(sorted(modules))}")
    holder = modules.pop()
    for weight in computed_weights(model, holder, observation):
        for parameter in weight.site.parameters:
            if observation.written.get(parameter, {holder}) != {holder}:
                raise TraceError(f"before it multiplies, from {parameter}: {WRITTEN}")
        if name in weight.site.parameters:
            return weight
    raise TraceError("before it multiplies")


def _select(found: Discovery, model: nn.Module, selection: Selection) -> None:
    if not found.sites:
        return
    factors = adapter_factors(model)
    apart = {site.name: ADAPTER for site in found.sites if factors.issuperset(site.parameters)}
    dense = [item.name for item in found.skipped]
    reasons = selection.reasons(found.sites, model, apart, dense)
    for name, reason in reasons.items():
        found.skip(name, reason)


def nothing_to_do(model: nn.Module, found: Discovery) -> str:
    """Why a model has no site, for an error."""
    name = type(model).__name__
    if not found.skipped:
        return f"{name} has no parameter that feeds a convolution or matrix product"
    chosen = ("not in include", "excluded by")
    own = [item for item in found.skipped if not item.reason.startswith(chosen)]
    item = (own or found.skipped)[0]
    return (
        f"{name} has no weight to make sparse: all {len(found.skipped)} are left out, "
        f"for example {item.name} {item.shape}: {item.reason}"
    )
