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

The class has the name of the user's, and ``isinstance`` holds; ``type(module) is`` does not.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from st3fx.core.cache import traceless
from st3fx.core.effective import EffectiveWeight
from st3fx.core.formula import Inputs
from st3fx.core.mask_bits import packed, unpacked
from st3fx.core.site_state import latent_name, state_name
from st3fx.core.sites import Site
from st3fx.errors import DriftWarning, StateError
from st3fx.methods.base import Method

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
    _refuse_change(sparse, caller)
    sparse.run.prepare(module.training, sparse.site.name, weight)
    known, inputs = traceless.count, sparse.inputs(module, name, weight)
    effective: Tensor = sparse.method.op(*inputs[1:4], *sparse.constants)
    if traceless.count != known and not module.training:
        sparse.run.suspect = True  # thresholds are of what the weights have been
        sparse.run.prepare(module.training, sparse.site.name, weight)
        inputs = sparse.inputs(module, name, weight)
        effective = sparse.method.op(*inputs[1:4], *sparse.constants)
    if nn.Module.__getattr__ is not _GETATTR:  # a tracer of torch.fx has put its own there
        sparse.run.say_of_trace(sparse.site.name)
        return effective.detach()
    if type(effective) is not Tensor or is_transformed():
        return effective
    return EffectiveWeight.of(effective, Place(module, name))


def _refuse_change(sparse: Sparse, caller: str) -> None:
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


def _attribute(name: str) -> property:
    """The attribute of a site's parameter."""

    def get(self: Any) -> Any:
        if torch.compiler.is_compiling():
            sparse = self.st3fx_sites[name] if name in self.st3fx_sites else None  # noqa: SIM401
            weight = self._parameters[name]
            if sparse is None:
                return weight
            threshold = getattr(self, state_name(name, "threshold"))
            mask = getattr(self, state_name(name, "mask"))
            return sparse.method.op(weight, threshold, mask, *sparse.constants)
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


def _computed_attribute(name: str, own: property) -> property:
    """The attribute of a weight that a parametrization of torch's computes."""

    def get(self: Any) -> Any:
        weight = own.fget(self)  # type: ignore[misc]
        if name not in self.st3fx_sites:
            return weight
        sparse = self.st3fx_sites[name]
        threshold = getattr(self, state_name(name, "threshold"))
        mask = getattr(self, state_name(name, "mask"))
        return sparse.method.op(weight, threshold, mask, *sparse.constants)

    return property(get, own.fset, doc=f"The effective weight of the computed ``{name}``.")


def _latent(name: str) -> property:
    def get(self: Any) -> Any:
        return self._parameters[name]

    return property(get, doc=f"The parameter ``{name}`` itself.")


def _flat_weights() -> property:
    """Recurrent layers read their weights from a list of their own."""

    def get(self: Any) -> Any:
        return [
            getattr(self, n) if n in self._parameters or n in self.__dict__ else w
            for n, w in zip(self._flat_weights_names, self.__dict__["_flat_weights"], strict=False)
        ]

    def put(self: Any, value: Any) -> None:
        self.__dict__["_flat_weights"] = value

    return property(get, put)


class _Methods:
    """What every class of a converted module overrides."""

    @staticmethod
    def body(base: type[nn.Module]) -> dict[str, Any]:
        """The overridden methods, for a subclass of ``base``."""
        made = {
            "register_parameter": _register_parameter,
            "_apply": _apply,
            "_save_to_state_dict": _save_to_state_dict,
            "_load_from_state_dict": _load_from_state_dict,
            "train": _train,
            "share_memory": _share_memory,
            "__setstate__": _set_state,
            "__delattr__": _delete,
        }
        body: dict[str, Any] = {name: make(base) for name, make in made.items()}
        body["__reduce_ex__"] = _reduce(base)
        body["qconfig"] = property(_qconfig, _set_qconfig, _delete_qconfig)
        if hasattr(base, "__deepcopy__"):
            body["__deepcopy__"] = _deepcopy(base)
        if issubclass(base, fx.GraphModule):
            body["recompile"] = _recompile(base)
        if issubclass(base, nn.ParameterList | nn.ParameterDict):
            body["__setitem__"] = _set_item(base)
        else:
            body["__init__"] = _init(base)
        if issubclass(base, nn.ParameterDict):
            body["copy"] = _copy_of_dict
        return body


def _register_parameter(base: type[nn.Module]) -> Callable[..., None]:
    @functools.wraps(base.register_parameter)
    def register_parameter(self: Any, name: str, param: Any) -> None:
        sites = self.__dict__.get(SITES, {})
        if name in sites and param is not self._parameters.get(name) and not _LOADING:
            end(self, name)
        base.register_parameter(self, name, param)

    return register_parameter


def _qconfig(self: Any) -> Any:
    if "qconfig" not in self.__dict__:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute 'qconfig'")
    return self.__dict__["qconfig"]


def _set_qconfig(self: Any, value: Any) -> None:
    """torch.ao.quantization marks what it quantizes so, then passes over classes not its own.

    Raises:
        StateError: In its place.
    """
    raise StateError(
        f"a {plain_class(type(self)).__name__} of a converted model is to be quantized, but "
        "quantization knows layers by their exact class and would leave its weights out: fold first"
    )


def _delete_qconfig(self: Any) -> None:
    del self.__dict__["qconfig"]


def _set_item(base: Any) -> Callable[..., None]:
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


def _copy_of_dict(self: Any) -> Any:
    """A copy that holds the effective weights."""
    twin = type(self)()
    for key in self._keys:
        twin[key] = self[key]
    return twin


def _delete(base: type[nn.Module]) -> Callable[..., None]:
    @functools.wraps(base.__delattr__)
    def delete(self: Any, name: str) -> None:
        sparse = self.__dict__.get(SITES, {}).get(name)
        if sparse is not None and name in self._parameters:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            _refuse_change(sparse, caller)
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


_LOADING: list[bool] = []
"""Not empty while a state dict is loaded: what is assigned then are latent weights."""


def end(module: nn.Module, parameter: str) -> None:
    """No site any more: the parameter is dense as it stands."""
    del module.__dict__[SITES][parameter]
    module.__dict__.setdefault(ENDED, set()).add(parameter)


def _apply(base: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(base._apply)
    def apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        base._apply(self, fn, recurse)
        for parameter, sparse in self.__dict__.get(SITES, {}).items():
            move_state(self, parameter, sparse)
        return self

    return apply


def move_state(module: nn.Module, parameter: str, sparse: Sparse) -> None:
    """Bring the method's tensors to where the weight is; they keep their precision."""
    weight = module._parameters.get(parameter)
    if weight is None:
        weight = next(iter(module.parameters()), None)
    if weight is None:
        return
    for key in ("threshold", "mask"):
        name = state_name(parameter, key)
        tensor = module.__dict__.get(name)
        if tensor is None or tensor.device == weight.device:
            continue
        if tensor.is_meta:  # it had no value yet
            tensor = sparse.method.state(sparse.site, weight.detach())[key]
        module.__dict__[name] = tensor.to(weight.device)


def _train(base: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(base.train)
    def train(self: Any, mode: bool = True) -> Any:
        if RUN in self.__dict__:
            self.__dict__[RUN].switched(mode)
        return base.train(self, mode)

    return train


def _share_memory(base: type[nn.Module]) -> Callable[..., Any]:
    @functools.wraps(base.share_memory)
    def share_memory(self: Any) -> Any:
        if RUN in self.__dict__:
            self.__dict__[RUN].warn(
                "the weights of a converted model are shared with other processes, its thresholds "
                "and steps are not: step it in one process, and hand its sparsifier.state_dict() "
                "to the others",
                DriftWarning,
            )
        return base.share_memory(self)

    return share_memory


def _save_to_state_dict(base: type[nn.Module]) -> Callable[..., None]:
    @functools.wraps(base._save_to_state_dict)
    def save(self: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
        base._save_to_state_dict(self, destination, prefix, keep_vars)
        for parameter, sparse in self.__dict__.get(SITES, {}).items():
            destination.update(saved_state(self, parameter, sparse, prefix))
        if RUN in self.__dict__:
            destination.update(self.__dict__[RUN].saved(prefix))

    return save


def saved_state(
    module: nn.Module, parameter: str, sparse: Sparse, prefix: str
) -> Iterator[tuple[str, Tensor]]:
    """Copies of the method's tensors, so that what is done to a state dict changes no model.

    The mask is there whether or not the sparsity is frozen, a bit for each weight in the order of
    its dimensions, so that state dicts of both kinds have the same keys and shapes.
    """
    threshold = module.__dict__.get(state_name(parameter, "threshold"))
    if threshold is not None:  # a learned one is a parameter
        yield prefix + state_name(parameter, "threshold"), threshold.detach().clone()
    mask = module.__dict__[state_name(parameter, "mask")]
    count = 1
    for size in sparse.site.shape:
        count *= size
    yield prefix + state_name(parameter, "mask"), packed(mask, count)


def _load_from_state_dict(base: type[nn.Module]) -> Callable[..., None]:
    @functools.wraps(base._load_from_state_dict)
    def load(
        self: Any, state: Any, prefix: str, meta: Any, strict: bool,
        missing: list[str], unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        _LOADING.append(True)
        try:
            base._load_from_state_dict(
                self, state, prefix, meta, strict, missing, unexpected, errors
            )
        finally:
            _LOADING.pop()
        if RUN in self.__dict__:
            self.__dict__[RUN].load(state, prefix)
        own = prefix + PREFIX
        unexpected[:] = [key for key in unexpected if not key.startswith(own)]
        absent = {key for key in missing if key.startswith(own)}  # learned thresholds stay
        missing[:] = [key for key in missing if key not in absent]
        for parameter, sparse in self.__dict__.get(SITES, {}).items():
            sparse.run.absent |= absent
            try:
                _take(self, parameter, sparse, state, prefix)
            except StateError as error:
                errors.append(f"{sparse.site.name}: {error}")

    return load


def _take(
    module: nn.Module, parameter: str, sparse: Sparse, state: Mapping[str, Any], prefix: str
) -> None:
    """The method's tensors from a state dict, as far as they are in it."""
    move_state(module, parameter, sparse)
    with torch.no_grad(), torch.inference_mode(False):
        name = state_name(parameter, "threshold")
        given, present = state.get(prefix + name), module.__dict__.get(name)
        if isinstance(given, Tensor) and present is not None:
            if given.shape != present.shape:
                raise StateError(
                    f"a threshold of shape {tuple(given.shape)} for one of {tuple(present.shape)}"
                )
            present.copy_(given)
        name = state_name(parameter, "mask")
        given = state.get(prefix + name)
        if isinstance(given, Tensor):
            device = module.__dict__[name].device
            module.__dict__[name] = unpacked(given, sparse.site.shape).to(device)
        elif sparse.run.loading:  # a file of an older version, whose masks are not frozen
            module.__dict__[name] = module.__dict__[name].new_empty(0)


def _set_state(base: type[nn.Module]) -> Callable[..., None]:
    def set_state(self: Any, state: dict[str, Any]) -> None:
        base.__setstate__(self, state)
        for run in _runs(self):
            run.adopt(self)
        own = self.__dict__.get(RUN)
        if own is not None and own.root is None:  # a shallow copy shares that of its original
            own.bind(self)

    return set_state


def _runs(module: nn.Module) -> set[Any]:
    """The runs of a module's own sites, and its own if it is a root."""
    own = module.__dict__.get(RUN)
    sites = module.__dict__.get(SITES, {}).values()
    return {sparse.run for sparse in sites} | ({own} if own is not None else set())


def _reduce(base: type[nn.Module]) -> Callable[..., Any]:
    def reduce(self: Any, protocol: Any) -> Any:
        for run in _runs(self):
            if RUN in self.__dict__ or run.root is None:
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
        if RUN in twin.__dict__:
            twin.__dict__[RUN].bind(twin)
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
        run = getattr(self, "st3fx_forward", None)
        if run is None:  # folded since, while a wrapper kept this method
            return base.forward(self, *args, **kwargs)
        if run.module is not self:
            return run.of_copy(self, *args, **kwargs)
        return run(*args, **kwargs)

    setattr(forward, IS_FORWARD, True)
    return forward


IS_FORWARD = "st3fx_is_forward"
"""Attribute of the function that stands as ``forward`` in a class of ours."""

_BASE = "st3fx_base"
"""Attribute of a class of ours: the user's class, the attributes, whether it has a forward."""


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
        _BASE: (base, names, has_forward),
        **_Methods.body(base),
    }
    for name in names:
        own = getattr(base, name, None)
        if isinstance(own, property):
            body[name] = _computed_attribute(name, own)
        else:
            body[name] = _attribute(name)
            body[latent_name(name)] = _latent(name)
    if names and issubclass(base, nn.RNNBase):
        body["_flat_weights"] = _flat_weights()
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
    _, names, has_forward = getattr(type(module), _BASE)
    return names, has_forward


def stored(module: nn.Module, name: str) -> Any:
    """An attribute; of a site's parameter the parameter itself."""
    parameter = module._parameters.get(name)
    return getattr(module, name) if parameter is None else parameter


def own_forward(module: nn.Module) -> Any:
    """The forward of the user's class, as a function."""
    kind: tuple[Any, ...] | None = getattr(type(module), _BASE, None)
    return type(module).forward if kind is None or not kind[2] else kind[0].forward


def has_site(module: nn.Module, parameter: str) -> bool:
    """Whether a module's class gives effective weights for a parameter, as long as none is set."""
    return hasattr(type(module), latent_name(parameter))


def enter(module: nn.Module, names: tuple[str, ...], has_forward: bool) -> None:
    """Make a module an instance of its converted class."""
    kind: Any = type(module)
    module.__class__ = class_for(kind, names, has_forward)


def leave(module: nn.Module) -> None:
    """Give a module its own class back, also under a class that another library made of ours."""
    module.__class__ = plain_class(type(module))


def plain_class(cls: type) -> type:
    """The user's class of a class of ours; any other as it is."""
    if _BASE in cls.__dict__:
        base: type = cls.__dict__[_BASE][0]
        return base
    if not hasattr(cls, _BASE):
        return cls
    # FSDP2 gives a module a subclass of the class that it has.
    bases = tuple(plain_class(base) for base in cls.__bases__)
    hidden = ("__dict__", "__weakref__")
    body = {key: value for key, value in vars(cls).items() if key not in hidden}
    return type(cls)(cls.__name__, bases, body)


def is_ours(cls: type) -> bool:
    """Whether a conversion has made a class itself."""
    return _BASE in cls.__dict__


def is_entered(module: nn.Module) -> bool:
    """Whether a module has a converted class."""
    return hasattr(type(module), _BASE)


def watch_loading(root: nn.Module) -> None:
    """Let the root's run know when all of its modules have been loaded."""
    root.register_load_state_dict_post_hook(_after_loading)


def unwatch_loading(model: nn.Module) -> None:
    """Take the hook off again, from ``model`` and all modules in it."""
    for module in model.modules():
        hooks = module.__dict__.get("_load_state_dict_post_hooks", {})
        for key in [key for key, hook in hooks.items() if hook is _after_loading]:
            del hooks[key]


def _after_loading(root: nn.Module, _: Any) -> None:
    root.__dict__[RUN].loaded()
