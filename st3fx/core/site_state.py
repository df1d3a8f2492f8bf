"""Where a method's tensors lie: beside the weight, under each of its names."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import Tensor, nn

from st3fx.core.masks import put_mask
from st3fx.core.sites import Site

if TYPE_CHECKING:
    from st3fx.methods.base import Method


def state_name(parameter: str, name: str) -> str:
    """Name of a method's tensor beside a parameter: ``st3fx_weight_threshold``."""
    return f"st3fx_{parameter}_{name}"


def homes(site: Site) -> list[str]:
    """Full names under which a site's state is kept: its own and its aliases'."""
    return [site.name, *site.aliases]


def places(model: nn.Module, site: Site) -> list[tuple[nn.Module, str]]:
    """Where a site's state is kept: modules, and the parameter's names there."""
    names = [home.rpartition(".") for home in homes(site)]
    return [(model.get_submodule(owner), parameter) for owner, _, parameter in names]


def state_of(model: nn.Module, site: Site, name: str) -> list[Tensor]:
    """One of a method's tensors, under each of the names of a site's weight."""
    return [
        getattr(module, state_name(parameter, name)) for module, parameter in places(model, site)
    ]


def put_state(
    model: nn.Module, site: Site, method: Method, present: Collection[str] = ()
) -> tuple[str, ...]:
    """Give the owners of a site the method's tensors as they are at conversion.

    Args:
        model: Changed.
        site: One of its sites.
        method: Makes the tensors.
        present: Full names of tensors that are there already, and stay.

    Returns:
        The tensors' names for the method, in the order of its operator's arguments.
    """
    state = method.state(site, _like(model, site))
    for home in homes(site):
        path, _, parameter = home.rpartition(".")
        module = model.get_submodule(path)
        for key, tensor in state.items():
            name = state_name(parameter, key)
            if (f"{path}.{name}" if path else name) not in present:
                _register(module, name, tensor)
    return tuple(state)


def _like(model: nn.Module, site: Site) -> Tensor:
    """A tensor with the shape and the device of a site's weight, which may be computed."""
    parameter = model.get_parameter(site.parameters[0])
    return parameter.detach() if parameter.shape == site.shape else parameter.new_empty(site.shape)


def _register(module: nn.Module, name: str, tensor: Tensor) -> None:
    """A learned threshold is one parameter under all names of a tied weight; a buffer is copied."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    elif tensor.numel():
        module.register_buffer(name, tensor.clone())
    else:
        put_mask(module, name, tensor.clone())
