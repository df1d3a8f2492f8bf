"""Decides for each parameter of an observed model whether it becomes sparse, or why it stays dense.

:func:`discover` is given what :mod:`observe` has seen and gives two lists, sites and skipped sites.
Each parameter that multiplies is asked in this order (``_sorted``):

1. Does a hook of ``torch.nn.utils.prune`` mask it? Then the conversion is refused, or, where the
   user leaves the weight out, it is skipped (``require_unmasked``).
2. Does it multiply as it is, or as a view of itself? Then it is a site, unless it is a vector,
   empty, not floating-point, or something else reads its values as well (``_direct_site``).
3. Does an embedding look up its rows too? Then it is skipped, unless the user asks for
   ``include_tied``: then the projection alone becomes sparse (``projection``).
4. Does the layer compute the weight that multiplies from it, or write to it? Then the threshold
   stands behind that computation where :mod:`computed` finds a place for it; otherwise the weight
   is skipped with the reason that :mod:`computed` gives (``_add_computed``).

What no product reads is skipped too, with what reads it instead (``beside``), and so are weights
of layers that the example does not reach. In the end the user's selectors are applied, and the
factors of adapters are left out (``_select``): LoRA's A and B are a few percent of their layer and
would vanish under a threshold that they share with it. ``require_complete`` then checks that every
parameter of two dimensions or more that an output depends on is in one of the two lists.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from st3fx.errors import PlanError, TraceError
from st3fx.modules.layers import IDLE, idle
from st3fx.modules.strangers import Stranger
from st3fx.passes.convert.computed import ComputedWeight, computed_weights
from st3fx.passes.convert.observation import Multiplication, Observation
from st3fx.passes.convert.products import LOOKUPS
from st3fx.passes.convert.tracker import AS_INPUT, FOREIGN
from st3fx.passes.convert.written import ELSEWHERE
from st3fx.plan.names import ancestors, is_below, owner, submodule
from st3fx.plan.selection import reasons, wants
from st3fx.plan.settings import ConversionSettings
from st3fx.plan.sites import Layout, Site, SkippedSite
from st3fx.tensors import is_dense


def projection(site: Site, observation: Observation, *, include: bool) -> Site | SkippedSite:
    """The projection of a tied embedding, or why it stays dense.

    Its own forward is given the effective weight; where the same forward reads rows, they could not
    be told apart.

    Args:
        site: The whole parameter, as if nothing but products read it.
        observation: Who else reads it.
        include: Whether the user wants projections sparse.
    """
    names = [site.name, *site.aliases]
    homes = [name for name in names if owner(name) in site.holders]
    readers = observation.readers[site.name]
    reason = "tied: an embedding reads its rows too (include_tied makes the projection sparse)"
    if include:
        together = any(is_below(reader, holder) for reader in readers for holder in site.holders)
        if not together and len(homes) == len(site.holders):
            others = [name for name in names if name not in homes]
            return dataclasses.replace(
                site, name=homes[0], aliases=tuple(homes[1:]), parameters=(*homes, *others),
                tied=True,
            )  # fmt: skip
        reason = "tied: one forward both multiplies with it and reads its rows"
    return SkippedSite(site.name, site.shape, site.op, reason)


REASON = "an adapter's own factor: stays dense unless include= has a selector for such alone"

_NAMED = re.compile(r"lora_?(embedding_)?([a-z]|down|up|mid|left|right)", re.IGNORECASE)


def adapter_factors(model: nn.Module) -> set[str]:
    """Full names, all of them, of parameters that belong to adapters.

    PEFT says of each of its layers which attributes are an adapter's; others name them alike.
    """
    inside = {
        f"{path}.{attribute}" if path else attribute
        for path, module in model.named_modules(remove_duplicate=False)
        for attribute in getattr(type(module), "adapter_layer_names", ())
    }
    return {
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if any(_NAMED.fullmatch(part) for part in name.split("."))
        or any(name == place or name.startswith(f"{place}.") for place in inside)
    }


def masked(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Full name of the parameter that a mask is put on -> name of the module, and of its weight."""
    return {
        f"{path}.{hook._tensor_name}_orig" if path else f"{hook._tensor_name}_orig": (
            path,
            hook._tensor_name,
        )
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, BasePruningMethod)
    }


def require_unmasked(
    model: nn.Module, multiplying: Mapping[str, str], settings: ConversionSettings
) -> dict[str, str]:
    """Why masked weights that the user leaves out stay dense, by name.

    Args:
        model: Whose hooks are looked at.
        multiplying: Parameters that multiply -> operator.
        settings: What the user wants sparse.

    Raises:
        PlanError: If one of them should become sparse: a threshold beside a mask makes no sense.
    """
    left = {}
    for name, (path, weight) in masked(model).items():
        if name not in multiplying:
            continue
        full = f"{path}.{weight}" if path else weight
        shape = tuple(model.get_parameter(name).shape)
        op = multiplying[name]
        site = Site(full, (name,), shape, op, Layout(), (path,), aliases=(name,))
        if len(shape) > 1 and wants(settings, site, model):
            raise PlanError(
                f"{full} {shape} is pruned by torch.nn.utils.prune, whose hook masks it in each "
                f"call: make that permanent before, torch.nn.utils.prune.remove(module, {weight!r})"
            )
        left[name] = "masked by torch.nn.utils.prune, and left out by include= or exclude="
    return left


_SHIFTS = frozenset({"add", "sub", "rsub", "add_", "sub_", "cat", "stack", "where", "copy_"})
_SCALES = frozenset({"mul", "div", "mul_", "div_", "addcmul", "pow"})
_NORMS = frozenset(
    {"native_layer_norm", "native_batch_norm", "native_group_norm", "_native_batch_norm_legit"}
) | {"cudnn_batch_norm", "_fused_rms_norm", "_batch_norm_with_update"}


def beside(model: nn.Module, observation: Observation) -> list[SkippedSite]:
    """Those that nothing multiplies with, in the order of the model's parameters."""
    others = observation.reached() - observation.multiplied().keys()
    return [
        SkippedSite(name, tuple(parameter.shape), _op(name, observation), _reason(
            name, tuple(parameter.shape), observation
        ))
        for name, parameter in model.named_parameters()
        if name in others and parameter.dim() > 1
    ]  # fmt: skip


def _op(name: str, observation: Observation) -> str:
    """``none`` for what is no multiplication; the name of an operator that may be one."""
    custom = [use for use in observation.other_uses.get(name, ()) if "::" in use]
    return custom[0] if custom else "none"


def _reason(name: str, shape: tuple[int, ...], observation: Observation) -> str:
    uses = observation.other_uses.get(name, set())
    words = ", ".join(sorted(uses))
    foreign = [use for use in uses if use.startswith(FOREIGN)]
    if name in observation.unseen or foreign:
        by = foreign[0] if foreign else "a foreign library"
        return f"reaches an output through {by}, which st3fx cannot follow: use torch's operators"
    if not uses:
        return "reaches an output without meeting an activation"
    if uses <= LOOKUPS:
        return f"its rows are looked up ({words}): no product"
    if any("::" in use for use in uses):
        return f"given to {words}, an operator that st3fx does not know"
    if uses <= _NORMS | _SHIFTS:
        return f"scales or shifts activations one by one ({words}): no product"
    hint = "; as a matrix product it could be sparse" if sum(size > 1 for size in shape) > 1 else ""
    if uses <= _NORMS | _SHIFTS | _SCALES:
        return f"multiplied elementwise ({words}): no matrix product{hint}"
    return f"read by {words}: no convolution or matrix product"


def require_complete(
    model: nn.Module,
    observation: Observation,
    sites: Iterable[Site],
    skipped: Iterable[SkippedSite],
) -> None:
    """Every parameter that reaches an output is in the plan.

    Raises:
        PlanError: With the first that is not, which is an error of st3fx.
    """
    named = {item.name for item in skipped}
    named |= {name for site in sites for name in (*site.parameters, *site.aliases)}
    known = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in named}
    reached = observation.reached()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name in reached and id(parameter) not in known:
            raise PlanError(
                f"{name} {tuple(parameter.shape)} reaches an output and is in no list of the plan: "
                "an error of st3fx, please report it"
            )


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
        self.skipped.append(SkippedSite(site.name, site.shape, site.op, reason, site.aliases))
        del self.users[name]
        self.computed.pop(name, None)

    def leave_out(self, model: nn.Module, name: str, op: str, reason: str) -> None:
        """Leave a parameter dense."""
        self.skipped.append(SkippedSite(name, tuple(_parameter(model, name).shape), op, reason))

    def modules_with_sites(self) -> set[str]:
        """Modules that a trace has to look into: all that multiply with a site, and those above."""
        return {name for users in self.users.values() for user in users for name in ancestors(user)}


def discover(
    model: nn.Module,
    observation: Observation,
    settings: ConversionSettings,
    strangers: Sequence[Stranger] = (),
) -> Discovery:
    """Sort every parameter that multiplies into sites and skipped sites.

    Args:
        model: The model that was observed.
        observation: What it does.
        settings: What the user wants sparse.
        strangers: What in the model means another one, that it was copied from.

    Raises:
        PlanError: If nothing multiplies, or nothing that does can or may become sparse.
    """
    try:
        found = _sorted(model, observation, settings)
    except PlanError as error:
        if not strangers:
            raise
        raise PlanError(f"{error}; {strangers[0].message}: give inplace=True") from error
    for index, item in enumerate(found.skipped):
        meant = [stranger for stranger in strangers if is_below(item.name, stranger.part)]
        if item.reason == IDLE and meant:
            reason = f"{IDLE}; {meant[0].message}"
            found.skipped[index] = dataclasses.replace(item, reason=reason)
    return found


def _sorted(model: nn.Module, observation: Observation, settings: ConversionSettings) -> Discovery:
    found = Discovery()
    aliases = _aliases(model)
    pruned = require_unmasked(
        model, {n: uses[0].op for n, uses in observation.multiplied().items()}, settings
    )
    for name, uses in observation.multiplied().items():
        if name in pruned:
            found.leave_out(model, name, uses[0].op, pruned[name])
            continue
        site = _direct_site(model, name, uses, observation, aliases[name])
        if isinstance(site, Site) and observation.other_uses.get(name):
            site = projection(site, observation, include=settings.include_tied)
        if isinstance(site, Site):
            _add(found, site, _users(name, uses, observation))
        elif isinstance(site, SkippedSite):
            found.skipped.append(site)
        else:
            _add_computed(found, model, observation, name, uses)
    found.skipped += beside(model, observation)
    found.skipped += idle(model, observation.reached())
    found.skipped = [
        dataclasses.replace(item, aliases=aliases.get(item.name, ())) for item in found.skipped
    ]
    _select(found, model, settings)
    require_complete(model, observation, found.sites, found.skipped)
    require_sites(model, found)
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
        reason = _read_otherwise(name, others, observation)
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


def _read_otherwise(name: str, others: set[str], observation: Observation) -> str:
    """Why a parameter stays dense that something beside products reads, and which forward does."""
    read = sorted(others - {AS_INPUT})
    where = ", ".join(reader or "the model" for reader in sorted(observation.readers[name]))
    learned = "what another weight multiplies, as a learned query or token is"
    if not read:
        return f"{learned} (in the forward of {where})"
    words = f"also read by {', '.join(read)} in the forward of {where}, which needs it dense"
    return f"{words}; and {learned}" if AS_INPUT in others else words


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
        done = "written to" if name in observation.written else "computed"
        found.leave_out(model, name, uses[0].op, f"{done} {error}")
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
    _require_own_writes(observation, name, holder)
    for weight in computed_weights(model, holder, observation):
        for parameter in weight.site.parameters:
            _require_own_writes(observation, parameter, holder)
        if name in weight.site.parameters:
            return weight
    raise TraceError("before it multiplies")


def _require_own_writes(observation: Observation, name: str, holder: str) -> None:
    """Refuse a parameter that others than its layer's forward write to.

    Raises:
        TraceError: With who does.
    """
    writers = observation.written.get(name, {holder}) - {holder}
    if writers:
        inside = ", ".join(writer or "the model" for writer in sorted(writers - {ELSEWHERE}))
        who = f"the forward of {inside}" if inside else "code around it (a hook, a module above)"
        raise TraceError(f"by {who}, and a threshold would meet other values in each call")


def _select(found: Discovery, model: nn.Module, settings: ConversionSettings) -> None:
    if not found.sites:
        return
    factors = adapter_factors(model)
    apart = {site.name: REASON for site in found.sites if factors.issuperset(site.parameters)}
    dense = [item.name for item in found.skipped]
    for name, reason in reasons(settings, found.sites, model, apart, dense).items():
        found.skip(name, reason)


def require_sites(model: nn.Module, found: Discovery) -> None:
    """A model without any site is not converted.

    Raises:
        PlanError: With why it has none.
    """
    if found.sites:
        return
    name = type(model).__name__
    if not found.skipped:
        raise PlanError(f"{name} has no parameter that feeds a convolution or matrix product")
    chosen = ("not in include", "excluded by")
    own = [item for item in found.skipped if not item.reason.startswith(chosen)]
    item = (own or found.skipped)[0]
    all_of = f"all {len(found.skipped)} are" if len(found.skipped) > 1 else "its only one is"
    example = "for example " if len(found.skipped) > 1 else ""
    raise PlanError(
        f"{name} has no weight to make sparse: {all_of} left out, "
        f"{example}{item.name} {item.shape}: {item.reason}"
    )
