"""What an attribute of a converted module gives: effective weights, whoever reads them."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.errors import StateError
from st3fx.modules.effective import EffectiveWeight
from st3fx.modules.marks import SITES, Sparse, plain_class, state_name
from st3fx.sparsity.cache import traceless


@dataclass(frozen=True)
class Place:
    """One attribute of one module, which an effective weight was read from."""

    module: nn.Module
    parameter: str

    @property
    def name(self) -> str:
        """The site's full name."""
        sparse: Sparse | None = self.module.__dict__.get(SITES, {}).get(self.parameter)
        return self.parameter if sparse is None else sparse.site.name

    def latent(self) -> Tensor:
        """The latent weight, as it is now."""
        latent: Tensor = self.module._parameters[self.parameter]  # type: ignore[assignment]
        return latent

    def read(self) -> Tensor:
        """The effective weight, as it is now."""
        weight: Tensor = getattr(self.module, self.parameter)
        return weight

    @property
    def active(self) -> bool:
        """Whether effective and latent weight may differ."""
        threshold: Tensor = getattr(self.module, state_name(self.parameter, "threshold"))
        mask: Tensor = getattr(self.module, state_name(self.parameter, "mask"))
        scheduled = not isinstance(threshold, nn.Parameter)
        return bool(mask.numel()) or not scheduled or bool((threshold >= 0).any())


_GETATTR = nn.Module.__getattr__

MEAN_THE_PARAMETER = (
    "torch.nn.modules.module",  # get_parameter
    "torch.nn.utils._named_member_accessor",
    "torch.nn.utils.stateless",
    "torch.nn.utils._per_sample_grad",
    "torch.distributed.",  # sharding and checkpoints
    "torch.nn.parallel.",
    "torch._functorch.",
    "accelerate.",  # offloading
)

"""Modules whose ``getattr(module, name)`` asks for the parameter itself, to move or to shard it."""

CHANGE_THE_PARAMETER = (
    "torch.nn.utils.prune",
    "torch.nn.utils.parametrize",
    "torch.nn.utils.parametrizations",
    "torch.nn.utils.weight_norm",
    "torch.nn.utils.spectral_norm",
    "torchao.",  # integers in its place
)

"""Modules that put something else in the place of a parameter, computed from it."""


def is_transformed() -> bool:
    """Whether this call is traced or transformed, by what sees no tensors but its own."""
    return (
        torch._C._functorch.maybe_current_level() is not None
        or bool(torch._C._len_torch_dispatch_stack())
        or torch._C._get_tracing_state() is not None
    )


def read(module: nn.Module, name: str, weight: Tensor, caller: str) -> Tensor:
    """What the attribute of a site's parameter gives.

    Args:
        module: The module.
        name: The parameter's name there.
        weight: The parameter.
        caller: Name of the Python module that asks.

    Raises:
        StateError: If torch's own pruning or parametrizations ask for it.
    """
    sparse: Sparse | None = module.__dict__.get(SITES, {}).get(name)
    if sparse is None or caller.startswith(MEAN_THE_PARAMETER):
        return weight
    refuse_change(sparse, caller)
    sparse.run.prepare(module.training, sparse.site.name, weight)
    known, inputs = traceless.count, sparse.inputs(module, name, weight)
    effective: Tensor = sparse.method.op(*inputs[1:4], *inputs.constants)
    if traceless.count != known and not module.training:
        sparse.run.suspect = True  # thresholds are of what the weights have been
        sparse.run.prepare(module.training, sparse.site.name, weight)
        inputs = sparse.inputs(module, name, weight)
        effective = sparse.method.op(*inputs[1:4], *inputs.constants)
    if nn.Module.__getattr__ is not _GETATTR:  # a tracer of torch.fx has put its own there
        sparse.run.say_of_trace(sparse.site.name)
        return effective.detach()
    if type(effective) is not Tensor or is_transformed():
        return effective
    return EffectiveWeight.of(effective, Place(module, name))


def refuse_change(sparse: Sparse, caller: str) -> None:
    """Refuse what puts something else in the place of a parameter."""
    if caller.startswith(CHANGE_THE_PARAMETER):
        raise StateError(
            f"{sparse.site.name} has a threshold, and {caller} would put another weight in its "
            "place: do that before the conversion, or fold first"
        )


@contextlib.contextmanager
def _no_fallback(module: nn.Module, name: str) -> Iterator[None]:
    """An ``AttributeError`` in a property lets Python ask ``__getattr__``, which is dense.

    Raises:
        StateError: In its place.
    """
    try:
        yield
    except AttributeError as error:
        raise StateError(
            f"the effective weight {name} of a {type(module).__name__} cannot be computed: {error}"
        ) from error


def _caller(frame: FrameType) -> str:
    """Name of the Python module that asks, past an own ``__getattribute__`` of the user's class."""
    while frame.f_code.co_name == "__getattribute__" and frame.f_back is not None:
        frame = frame.f_back
    name: str = frame.f_globals.get("__name__", "")
    return name


def attribute(name: str) -> property:
    """The attribute of a site's parameter."""

    def get(self: Any) -> Any:
        if torch.compiler.is_compiling():
            sites = getattr(self, SITES)
            sparse = sites[name] if name in sites else None  # noqa: SIM401
            weight = self._parameters[name]
            if sparse is None:
                return weight
            threshold = getattr(self, state_name(name, "threshold"))
            mask = getattr(self, state_name(name, "mask"))
            return sparse.method.op(weight, threshold, mask, *sparse.arguments(self, name))
        weight = self._parameters.get(name)
        if weight is None:
            if name in self._parameters:
                return None
            if name not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            weight = self.__dict__[name]  # a replica of data parallelism has plain tensors
        with _no_fallback(self, name):
            return read(self, name, weight, _caller(sys._getframe(1)))

    def put(self: Any, value: Any) -> None:
        if not self.__dict__.get("_is_replica"):  # of torch's data parallelism
            raise StateError(
                f"{type(self).__name__}.{name} is set to a {type(value).__name__}, but it is a "
                "weight of a converted model: assign an nn.Parameter, write to "
                f"get_parameter({name!r}), or fold first"
            )
        self.__dict__[name] = value

    return property(get, put, doc=f"The effective weight of the parameter ``{name}``.")


def computed_attribute(name: str, own: property) -> property:
    """The attribute of a weight that a parametrization of torch's computes."""

    def get(self: Any) -> Any:
        weight = own.fget(self)  # type: ignore[misc]
        sites = getattr(self, SITES)
        if name not in sites:
            return weight
        sparse = sites[name]
        threshold = getattr(self, state_name(name, "threshold"))
        mask = getattr(self, state_name(name, "mask"))
        return sparse.method.op(weight, threshold, mask, *sparse.arguments(self, name))

    return property(get, own.fset, doc=f"The effective weight of the computed ``{name}``.")


def latent_attribute(name: str) -> property:
    """The attribute by which graphs read the parameter itself."""

    def get(self: Any) -> Any:
        return self._parameters[name]

    return property(get, doc=f"The parameter ``{name}`` itself.")


def get_qconfig(self: Any) -> Any:
    """The mark of ``torch.ao.quantization``, if the model came with one."""
    if "qconfig" not in self.__dict__:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute 'qconfig'")
    return self.__dict__["qconfig"]


def set_qconfig(self: Any, value: Any) -> None:
    """torch.ao.quantization marks what it quantizes so, then passes over classes not its own.

    Raises:
        StateError: In its place.
    """
    raise StateError(
        f"a {plain_class(type(self)).__name__} of a converted model is to be quantized, but "
        "quantization knows layers by their exact class and would leave its weights out: fold first"
    )


def delete_qconfig(self: Any) -> None:
    """Take the mark off."""
    del self.__dict__["qconfig"]


def set_item(base: Any) -> Callable[..., None]:
    """A slice or a copy of a container holds the effective weights, not parameters made of them."""

    @functools.wraps(base.__setitem__)
    def set_item(self: Any, key: Any, value: Any) -> None:
        is_read = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        is_weight = isinstance(value, EffectiveWeight) or (is_read and not value.is_leaf)
        if not is_weight or SITES in self.__dict__:
            base.__setitem__(self, key, value)
        elif issubclass(base, nn.ParameterDict):
            self._keys[key] = None
            self.__dict__[self._key_to_attr(key)] = value
        else:
            self.__dict__[self._get_abs_string_index(key)] = value

    return set_item


def copy_of_dict(self: Any) -> Any:
    """A copy that holds the effective weights."""
    twin = type(self)()
    for key in self._keys:
        twin[key] = self[key]
    return twin
