"""What the modules of a converted model carry, and under which names.

Each module has the marks of its sites, the root has the :class:`Conversion`. Nobody else knows the
names: attributes of modules and entries of state dicts begin with one prefix.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, fx, nn

from st3fx.errors import StateError
from st3fx.methods.base import Method
from st3fx.plan.sites import Site, SparsityPlan
from st3fx.sparsity.formula import Inputs

PREFIX = "st3fx_"

SITES = f"{PREFIX}sites"
"""Attribute of a module: parameter's name -> what makes it a site."""

ENDED = f"{PREFIX}ended"
"""Attribute of a module: names of parameters that were sites until another was assigned."""

COMPUTE = f"{PREFIX}compute"
"""Attribute of a module whose weight is computed: parameter's name -> how, as a graph."""

FORWARD = f"{PREFIX}forward"
"""Attribute of a module: its sparse forward."""

CONVERSION = f"{PREFIX}conversion"
"""Attribute of the root: its :class:`Conversion`."""

PUBLIC = ("plan", "islands")
"""Fields of the conversion that are attributes of the root, too: ``model.st3fx_plan``."""

STEP = f"{PREFIX}step"
LEVEL = f"{PREFIX}sparsity"
"""Entries of the root in a state dict: the steps, and what the thresholds were set for."""

ISLAND = f"{PREFIX}name"
MODE = f"{PREFIX}mode"
"""Attributes of a graph module: full name of the module whose graph it is, and the mode."""

IS_FORWARD = f"{PREFIX}is_forward"
"""Attribute of the function that stands as ``forward`` in a class of ours."""

BASE = f"{PREFIX}base"
"""Attribute of a class of ours: the user's class, the attributes, whether it has a forward."""


def state_name(parameter: str, name: str) -> str:
    """Name of a method's tensor beside a parameter: ``st3fx_weight_threshold``."""
    return f"{PREFIX}{parameter}_{name}"


def parameter_of(name: str) -> str:
    """The parameter that a method's tensor lies beside."""
    return name.removeprefix(PREFIX).rpartition("_")[0]


def is_state(name: str) -> bool:
    """Whether a parameter, or an entry of a state dict, is ours and not the user's."""
    return name.rpartition(".")[2].startswith(PREFIX)


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
    pin: bool

    @property
    def root(self) -> nn.Module | None:
        """The converted model, unless it is gone or a part of it was copied alone."""

    @property
    def follows(self) -> bool:
        """Whether this is of a copy that nothing drives."""

    def bind(self, root: nn.Module) -> None:
        """Belong to a model, as it is now."""

    def adopt(self, module: nn.Module) -> None:
        """Take note of a module of a copy."""

    def before_copy(self) -> None:
        """Bring thresholds up to date that a copy could not."""

    def prepare(
        self, training: bool, name: str = "", weight: Tensor | None = None, *, whole: bool = False
    ) -> None:
        """Bring the thresholds up to date before a forward, or before a read of one weight."""

    def switched(self, training: bool) -> None:
        """Take note that the model is switched to training, or to eval mode."""

    def keep_zeros(self, *, pin: bool) -> float:
        """Start from the zeros that the weights have."""

    def saved(self, prefix: str) -> dict[str, Tensor]:
        """The entries of a state dict."""

    def of_training(self, name: str, threshold: Tensor) -> Tensor:
        """A site's threshold as the last step has set it."""

    def load(self, state: Mapping[str, Any], prefix: str) -> None:
        """Take the entries of a state dict, before the modules below are loaded."""

    def loaded(self) -> None:
        """Take note that all modules have been loaded."""

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
        constants = self.arguments(module, parameter)
        return Inputs(self.method.formula, weight, threshold, mask, constants)

    def arguments(self, module: nn.Module, parameter: str) -> tuple[Any, ...]:
        """The operator's arguments after the mask."""
        learned = [getattr(module, state_name(parameter, key)) for key in self.method.learned]
        return (*learned, *self.constants)


@dataclass(frozen=True)
class Conversion:
    """What the root of a converted model carries; the state of the training is its run's.

    Another takes its place when something changes, so that shallow copies each have their own.

    Attributes:
        plan: What was done, without what has been dropped since.
        method: The method with its settings, which a training of a bundle may have changed.
        run: Where the training stands; all modules share it.
        islands: The captured graphs.
        total_steps: Optimizer steps of the whole training, if known.
        update_every: Optimizer steps between two searches for the threshold.
        unloaded: Whether the weights had no values yet.
        recompute_weights: Whether backwards compute effective weights again, and none is kept.
    """

    plan: SparsityPlan
    method: Method
    run: Training
    islands: Sequence[fx.GraphModule] = ()
    total_steps: int | None = None
    update_every: int = 1
    unloaded: bool = False
    recompute_weights: bool = False


def found_conversion(module: nn.Module) -> Conversion | None:
    """The conversion of a module; ``None`` unless it is the root of a converted model."""
    conversion: Conversion | None = module.__dict__.get(CONVERSION)
    return conversion


def is_root(module: nn.Module) -> bool:
    """Whether a module is the root of a converted model."""
    return CONVERSION in module.__dict__


def conversion_of(model: Any) -> Conversion:
    """The conversion of a converted model.

    Raises:
        StateError: If the model was not converted.
    """
    try:  # each step asks several times
        conversion: Conversion = model.__dict__[CONVERSION]
    except (AttributeError, KeyError):
        raise StateError(
            f"{type(model).__name__} is not a converted model: give what convert gave"
        ) from None
    return conversion


def change_conversion(model: nn.Module, **changes: Any) -> None:
    """Put another conversion in the place of a model's, with other values of some fields."""
    model.__dict__[CONVERSION] = dataclasses.replace(conversion_of(model), **changes)


def gather_conversion(module: nn.Module) -> None:
    """Make one conversion of the attributes that a root has in a pickle of an older version."""
    names = [field.name for field in dataclasses.fields(Conversion)]
    loose = {n: module.__dict__.pop(PREFIX + n) for n in names if PREFIX + n in module.__dict__}
    if loose:
        module.__dict__[CONVERSION] = Conversion(**loose)


def end(module: nn.Module, parameter: str) -> None:
    """No site any more: the parameter is dense as it stands."""
    del module.__dict__[SITES][parameter]
    module.__dict__.setdefault(ENDED, set()).add(parameter)


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
