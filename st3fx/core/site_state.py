"""Where a method's tensors lie: beside the weight, under each of its names.

They are plain attributes of the module (``st3fx_weight_threshold``, ``st3fx_weight_mask``), neither
parameters nor buffers: averages of weights, which walk over both, leave them alone. Learned
thresholds alone are parameters, since the optimizer trains them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import Tensor, nn

from st3fx.core.sites import Site

if TYPE_CHECKING:
    from st3fx.methods.base import Method


def state_name(parameter: str, name: str) -> str:
    """Name of a method's tensor beside a parameter: ``st3fx_weight_threshold``."""
    return f"st3fx_{parameter}_{name}"


def latent_name(parameter: str) -> str:
    """Attribute of a converted module that gives the latent weight itself; graphs read it."""
    return state_name(parameter, "latent")


def homes(site: Site) -> list[str]:
    """Full names under which a site's state is kept: its own and its aliases'."""
    return [site.name, *site.aliases]


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
                put_tensor(module, name, tensor)
    return tuple(state)


def _like(model: nn.Module, site: Site) -> Tensor:
    """A tensor with the shape and the device of a site's weight, which may be computed."""
    parameter = model.get_parameter(site.parameters[0])
    return parameter.detach() if parameter.shape == site.shape else parameter.new_empty(site.shape)


def put_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """A learned threshold is one parameter under all names of a tied weight; others are copied."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.__dict__[name] = tensor.detach().clone()
