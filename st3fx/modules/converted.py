"""The class that a module of a converted model gets: its attributes are effective weights.

A module that owns the parameter of a site, and one whose forward is a graph, becomes an instance of
a subclass of its own class, as torch's parametrizations do it:

* Reading the attribute (``layer.weight``) gives the effective weight, whoever reads it: the
  module's forward, any other method, code outside. ``parameters()``, the optimizer and
  ``get_parameter`` see the latent weight, and so do libraries that move or shard parameters.
* ``forward`` runs the module's graph where one applies, else the forward of the user's class.
* The method's tensors are plain attributes, which no average of weights reaches; ``state_dict``
  gives copies of them, ``load_state_dict`` takes them in, ``to()`` moves them.
* A parameter that is assigned to the attribute is no latent weight of ours: the site ends there.
  Only a DTensor of its shape is: the weight, split over processes.

The class has the name of the user's, and ``isinstance`` holds; ``type(module) is`` does not.

Where a method's tensors lie: beside the weight, under each of its names.

They are plain attributes of the module (``st3fx_weight_threshold``, ``st3fx_weight_mask``), neither
parameters nor buffers: averages of weights, which walk over both, leave them alone. Learned
thresholds and probabilities alone are parameters, since the optimizer trains them.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.distributed.tensor import DTensor

from st3fx.errors import DriftWarning, StateError
from st3fx.modules.attributes import (
    MEAN_THE_PARAMETER,
    attribute,
    computed_attribute,
    copy_of_dict,
    delete_qconfig,
    get_qconfig,
    latent_attribute,
    refuse_change,
    set_item,
    set_qconfig,
)
from st3fx.modules.marks import (
    BASE,
    FORWARD,
    IS_FORWARD,
    PREFIX,
    PUBLIC,
    SITES,
    conversion_of,
    end,
    found_conversion,
    gather_conversion,
    is_ours,
    is_root,
    latent_name,
    plain_class,
)
from st3fx.modules.rnn import computed_list
from st3fx.modules.saving import LOADING, load_from_state_dict, move_state, save_to_state_dict


class _Methods:
    """What every class of a converted module overrides."""

    @staticmethod
    def body(base: type[nn.Module]) -> dict[str, Any]:
        """The overridden methods, for a subclass of ``base``."""
        made = {
            "register_parameter": _register_parameter,
            "_apply": _apply,
            "_save_to_state_dict": save_to_state_dict,
            "_load_from_state_dict": load_from_state_dict,
            "train": _train,
            "share_memory": _share_memory,
            "__setstate__": _set_state,
            "__delattr__": _delete,
        }
        body: dict[str, Any] = {name: make(base) for name, make in made.items()}
        body["__reduce_ex__"] = _reduce(base)
        body["qconfig"] = property(get_qconfig, set_qconfig, delete_qconfig)
        body |= {PREFIX + field: _of_conversion(field) for field in PUBLIC}
        if hasattr(base, "__deepcopy__"):
            body["__deepcopy__"] = _deepcopy(base)
        if issubclass(base, fx.GraphModule):
            body["recompile"] = _recompile(base)
        if issubclass(base, nn.ParameterList | nn.ParameterDict):
            body["__setitem__"] = set_item(base)
        else:
            body["__init__"] = _init(base)
        if issubclass(base, nn.ParameterDict):
            body["copy"] = copy_of_dict
        return body


def _of_conversion(field: str) -> property:
    """The attribute of a root that gives a field of its conversion; other modules have none."""

    def get(self: Any) -> Any:
        conversion = found_conversion(self)
        if conversion is None:
            raise AttributeError(PREFIX + field)  # so that torch says that there is none
        return getattr(conversion, field)

    return property(get, doc=f"The {field} of the conversion.")


def _register_parameter(base: type[nn.Module]) -> Callable[..., None]:
    @functools.wraps(base.register_parameter)
    def register_parameter(self: Any, name: str, param: Any) -> None:
        sites = self.__dict__.get(SITES, {})
        if name in sites and param is not self._parameters.get(name) and not LOADING:
            # Tensor parallelism puts a weight of the same shape there, which is split.
            split = isinstance(param, DTensor) and param.shape == sites[name].site.shape
            if not split:
                end(self, name)
        base.register_parameter(self, name, param)

    return register_parameter


def _delete(base: type[nn.Module]) -> Callable[..., None]:
    @functools.wraps(base.__delattr__)
    def delete(self: Any, name: str) -> None:
        sparse = self.__dict__.get(SITES, {}).get(name)
        if sparse is not None and name in self._parameters:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            refuse_change(sparse, caller)
            if not caller.startswith(MEAN_THE_PARAMETER):
                end(self, name)
        base.__delattr__(self, name)

    return delete


def _init(base: type[nn.Module]) -> Callable[..., None]:
    @functools.wraps(base.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if is_ours(type(self)):  # ``type(layer)(8, 4)``: a new layer is none of the conversion's
            self.__class__ = base
        base.__init__(self, *args, **kwargs)

    return init


def _apply(base: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(base._apply)
    def apply(self: Any, fn: Any, *recurse: bool, **named: bool) -> Any:
        base._apply(self, fn, *recurse, **named)  # a user's own may know of no further argument
        for parameter, sparse in self.__dict__.get(SITES, {}).items():
            move_state(self, parameter, sparse)
        return self

    return apply


def _train(base: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(base.train)
    def train(self: Any, mode: bool = True) -> Any:
        conversion = found_conversion(self)
        if conversion is not None:
            conversion.run.switched(mode)
        return base.train(self, mode)

    return train


def _share_memory(base: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(base.share_memory)
    def share_memory(self: Any) -> Any:
        conversion = found_conversion(self)
        if conversion is not None:
            conversion.run.warn(
                "the weights of a converted model are shared with other processes, its thresholds "
                "and steps are not: step it in one process, and hand its sparsifier.state_dict() "
                "to the others",
                DriftWarning,
            )
        return base.share_memory(self)

    return share_memory


def _set_state(base: type[nn.Module]) -> Callable[..., None]:
    def set_state(self: Any, state: dict[str, Any]) -> None:
        base.__setstate__(self, state)
        gather_conversion(self)
        for run in _runs(self):
            run.adopt(self)
        own = found_conversion(self)
        if own is not None and own.run.root is None:  # a shallow copy shares that of its original
            own.run.bind(self)

    return set_state


def _runs(module: nn.Module) -> set[Any]:
    """The runs of a module's own sites, and its own if it is a root."""
    own = found_conversion(module)
    sites = module.__dict__.get(SITES, {}).values()
    return {sparse.run for sparse in sites} | ({own.run} if own is not None else set())


def _reduce(base: type[nn.Module]) -> Callable[..., Any]:
    def reduce(self: Any, protocol: Any) -> Any:
        for run in _runs(self):
            if is_root(self) or run.root is None:
                run.before_copy()
        made: Any = base.__reduce_ex__(self, protocol)
        function, args, *rest = made
        names, has_forward = _kind_of(self)
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]
            if not is_ours(type(self)):  # a class that others have made of it
                return made
            return (_new, (base, names, has_forward, *args[1:]), *rest)
        # fx's graph modules are made again from their code and attributes.
        ours = {key: value for key, value in self.__dict__.items() if key.startswith(PREFIX)}
        args = tuple(
            {k: v for k, v in arg.items() if k not in ours} if isinstance(arg, dict) else arg
            for arg in args
        )
        return (_made_by, (names, has_forward, function, *args), ours)

    return reduce


def _new(base: type[nn.Module], names: tuple[str, ...], has_forward: bool, *args: Any) -> Any:
    """An empty instance, as unpickling makes it."""
    kind: Any = base
    cls = class_for(kind, names, has_forward)
    return cls.__new__(cls, *args)


def _made_by(names: tuple[str, ...], has_forward: bool, function: Any, *args: Any) -> Any:
    """What ``function`` makes, of a converted module's class."""
    module = function(*args)
    enter(module, names, has_forward)
    return module


def _deepcopy(base: type[nn.Module]) -> Callable[..., Any]:
    """For classes that copy themselves, as fx's graph modules, and leave attributes out."""

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        twin = base.__deepcopy__(self, memo)  # type: ignore[attr-defined]
        memo[id(self)] = twin
        for key, value in self.__dict__.items():
            if key.startswith(PREFIX):
                twin.__dict__[key] = copy.deepcopy(value, memo)
        twin.__class__ = class_for(plain_class(type(twin)), *_kind_of(self))
        for run in _runs(twin):
            run.adopt(twin)
        if is_root(twin):
            conversion_of(twin).run.bind(twin)
        return twin

    return deepcopy


def _recompile(base: type[nn.Module]) -> Callable[..., Any]:
    """A graph module writes its code to its class, which has to be its own."""

    def recompile(self: Any) -> Any:
        ours = type(self)
        self.__class__ = base
        try:
            return base.recompile(self)  # type: ignore[attr-defined]
        finally:
            self.__class__ = ours

    return recompile


def _forward(base: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = getattr(self, FORWARD, None)
        if run is None:  # folded since, while a wrapper kept this method
            return base.forward(self, *args, **kwargs)
        if run.module is not self:
            return run.of_copy(self, *args, **kwargs)
        return run(*args, **kwargs)

    # Of its own, as a user's class has: compilers count their attempts by code object.
    function: Any = forward
    function.__code__ = function.__code__.replace()
    setattr(forward, IS_FORWARD, True)
    return forward


@functools.cache
def class_for(base: Any, names: tuple[str, ...], has_forward: bool) -> Any:
    """The class of converted modules of a class.

    Args:
        base: The user's class.
        names: Parameters whose attributes are effective weights.
        has_forward: Whether there is a sparse forward.
    """
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        BASE: (base, names, has_forward),
        **_Methods.body(base),
    }
    for name in names:
        own = getattr(base, name, None)
        if isinstance(own, property):
            body[name] = computed_attribute(name, own)
        else:
            body[name] = attribute(name)
            body[latent_name(name)] = latent_attribute(name)
    if names:
        body |= computed_list(base)
    if has_forward:
        body["forward"] = _forward(base)
        body[FORWARD] = None
    # What a class does with its subclasses (a registry, a keyword that it asks for) is for theirs.
    quiet = "__init_subclass__" in {name for kind in base.__mro__[:-1] for name in vars(kind)}
    try:
        return type(base)(base.__name__, (_Quiet, base) if quiet else (base,), body)
    except Exception as error:
        raise StateError(
            f"{base.__name__} cannot be converted, because {type(base).__name__} refuses a "
            f"subclass of it ({error}): exclude it, or let its metaclass take one more class"
        ) from error


class _Quiet:
    """Before a class whose ``__init_subclass__`` is not for classes of ours."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if not is_ours(cls):
            super().__init_subclass__(**kwargs)


def _kind_of(module: nn.Module) -> tuple[tuple[str, ...], bool]:
    _, names, has_forward = getattr(type(module), BASE)
    return names, has_forward


def enter(module: nn.Module, names: tuple[str, ...], has_forward: bool) -> None:
    """Make a module an instance of its converted class."""
    kind: Any = type(module)
    module.__class__ = class_for(kind, names, has_forward)


def leave(module: nn.Module) -> None:
    """Give a module its own class back, also under a class that another library made of ours."""
    module.__class__ = plain_class(type(module))
