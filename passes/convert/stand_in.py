"""A converted model without its class: parameters and buffers by their names, and no forward.

A state dict and a plan are enough to set thresholds, to apply a method's formula and to fold: none
of that runs the model. Only a weight that a forward computes needs the forward.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from st3fx.errors import StateError
from st3fx.methods.base import Method
from st3fx.modules.converted import enter
from st3fx.modules.marks import (
    CONVERSION,
    SITES,
    Conversion,
    Sparse,
    homes,
    is_state,
    put_state,
)
from st3fx.modules.saving import watch_loading
from st3fx.plan.names import owner
from st3fx.plan.sites import SparsityPlan
from st3fx.sparsifier.run import Run

_DEPTH = 100
"""Modules in one another: more would end Python's stack."""


class Part(nn.Module):
    """Holds parameters and buffers."""


def can_stand_in(plan: SparsityPlan) -> bool:
    """Whether all sparse weights of a model are in its state dict, and none is computed."""
    return bool(plan.sites) and not any(site.computed for site in plan.sites)


def stand_in(
    plan: SparsityPlan,
    method: Method,
    state: Mapping[str, Tensor],
    *,
    total_steps: int | None = None,
    update_every: int = 1,
    pin: bool = False,
) -> nn.Module:
    """What a conversion made, with the state that it has now, as far as it can be without forward.

    Args:
        plan: Its plan; see :func:`can_stand_in`.
        method: With its settings.
        state: The state dict, on the CPU. It is not changed, nor kept.
        total_steps: As of the conversion.
        update_every: As of the conversion.
        pin: Whether zeros that the weights start with stay zeros.

    Raises:
        StateError: When plan and state do not fit.
    """
    root, run = _parts(plan, state), Run()
    names: dict[nn.Module, set[str]] = {root: set()}
    for site in plan.sites:
        for home in homes(site):
            value = state.get(home)
            if value is None or value.shape != site.shape or not value.is_floating_point():
                raise StateError(f"the state has no weight {home} of shape {site.shape}")
        if not site.parameters or site.parameters[0] not in state:
            raise StateError(f"the plan has {site.name} of parameters that the state does not have")
        put_state(root, site, method)
        mark = Sparse(site, method, method.arguments(site), run)
        for home in homes(site):
            module, parameter = root.get_submodule(owner(home)), home.rpartition(".")[2]
            module.__dict__.setdefault(SITES, {})[parameter] = mark
            names.setdefault(module, set()).add(parameter)
    for module, own in names.items():
        enter(module, tuple(sorted(own)), has_forward=False)
    root.__dict__[CONVERSION] = Conversion(plan, method, run, (), total_steps, update_every)
    run.bind(root)
    watch_loading(root)
    run.keep_zeros(pin=pin)
    try:
        root.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise StateError(f"the state does not fit the plan: {error}") from error
    return root


def _parts(plan: SparsityPlan, state: Mapping[str, Tensor]) -> nn.Module:
    """A tree of modules with the entries of a state dict; those that are tied are one parameter."""
    root, sites = Part(), {home for site in plan.sites for home in homes(site)}
    made: dict[int, Tensor] = {}
    sparse = {id(state[home]) for home in sites if home in state}
    for name, value in state.items():
        if is_state(name):
            continue
        module: nn.Module = root
        *path, last = name.split(".")
        if len(path) > _DEPTH:
            raise StateError(f"the state has a name of {len(path)} parts: {name[:80]}")
        for part in path:
            # Not by setattr: a module may have any name.
            module = module._modules.setdefault(part, Part())  # type: ignore[assignment]
        own = made.setdefault(id(value), value.clone())
        if id(value) in sparse:
            if not isinstance(own, nn.Parameter):
                own = made[id(value)] = nn.Parameter(own, requires_grad=False)
            module._parameters[last] = own
        else:
            module._buffers[last] = own
    return root
