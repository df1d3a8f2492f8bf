"""What a module of a converted model carries: the marks of its sites, and their names."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from st3fx.methods.base import Method
from st3fx.plan.sites import Site
from st3fx.sparsity.formula import Inputs


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


PREFIX = "st3fx_"

SITES = "st3fx_sites"

"""Attribute of a module: parameter's name -> what makes it a site."""

ENDED = "st3fx_ended"

"""Attribute of a module: names of parameters that were sites until another was assigned."""

FORWARD = "st3fx_forward"

"""Attribute of a module: its sparse forward."""

RUN = "st3fx_run"

"""Attribute of the root: where its training stands."""


class Speaker(Protocol):
    """What says things once: of a model, of which it is the only one."""

    def warn(self, message: str, category: type[Warning], subject: str = "") -> None:
        """Say something once."""


class Training(Speaker, Protocol):
    """Where the training of a converted model stands, as far as its modules and graphs ask."""

    sparsity: float | None
    loading: bool
    absent: set[str]
    suspect: bool
    key: int

    @property
    def root(self) -> nn.Module | None:
        """The converted model, unless it is gone or a part of it was copied alone."""

    @property
    def follows(self) -> bool:
        """Whether this is of a copy that nothing drives."""

    def adopt(self, module: nn.Module) -> None:
        """Take note of a module of a copy."""

    def before_copy(self) -> None:
        """Bring thresholds up to date that a copy could not."""

    def prepare(
        self, training: bool, name: str = "", weight: Tensor | None = None, *, whole: bool = False
    ) -> None:
        """Bring the thresholds up to date before a forward, or before a read of one weight."""

    def warn_of_drift(self) -> None:
        """Say which layers were replaced."""

    def say_of_trace(self, name: str) -> None:
        """Say that a tracer has taken the weight of the moment."""


@dataclass(frozen=True)
class Sparse:
    """What makes a parameter of a module a site.

    Attributes:
        site: From the plan.
        method: Gives the operator, which as an object could not be pickled.
        constants: The operator's remaining arguments.
        run: That of the conversion; all sites of a model share it.
    """

    site: Site
    method: Method
    constants: tuple[Any, ...]
    run: Training

    def __deepcopy__(self, memo: dict[int, Any]) -> Sparse:
        """For the copy's run; the rest never changes."""
        return Sparse(self.site, self.method, self.constants, copy.deepcopy(self.run, memo))

    def inputs(self, module: nn.Module, parameter: str, weight: Tensor) -> Inputs:
        """What the effective weight is computed from."""
        threshold = getattr(module, state_name(parameter, "threshold"))
        mask = getattr(module, state_name(parameter, "mask"))
        return Inputs(self.method.formula, weight, threshold, mask, self.constants)


def end(module: nn.Module, parameter: str) -> None:
    """No site any more: the parameter is dense as it stands."""
    del module.__dict__[SITES][parameter]
    module.__dict__.setdefault(ENDED, set()).add(parameter)


IS_FORWARD = "st3fx_is_forward"

"""Attribute of the function that stands as ``forward`` in a class of ours."""

BASE = "st3fx_base"

"""Attribute of a class of ours: the user's class, the attributes, whether it has a forward."""


def stored(module: nn.Module, name: str) -> Any:
    """An attribute; of a site's parameter the parameter itself."""
    parameter = module._parameters.get(name)
    return getattr(module, name) if parameter is None else parameter


def own_forward(module: nn.Module) -> Any:
    """The forward of the user's class, as a function."""
    kind: tuple[Any, ...] | None = getattr(type(module), BASE, None)
    return type(module).forward if kind is None or not kind[2] else kind[0].forward


def has_site(module: nn.Module, parameter: str) -> bool:
    """Whether a module's class gives effective weights for a parameter, as long as none is set."""
    return hasattr(type(module), latent_name(parameter))


def plain_class(cls: type) -> type:
    """The user's class of a class of ours; any other as it is."""
    if BASE in cls.__dict__:
        base: type = cls.__dict__[BASE][0]
        return base
    if not hasattr(cls, BASE):
        return cls
    # FSDP2 gives a module a subclass of the class that it has.
    bases = tuple(plain_class(base) for base in cls.__bases__)
    hidden = ("__dict__", "__weakref__")
    body = {key: value for key, value in vars(cls).items() if key not in hidden}
    return type(cls)(cls.__name__, bases, body)


def is_ours(cls: type) -> bool:
    """Whether a conversion has made a class itself."""
    return BASE in cls.__dict__


def is_entered(module: nn.Module) -> bool:
    """Whether a module has a converted class."""
    return hasattr(type(module), BASE)
