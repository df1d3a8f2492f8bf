"""What an attribute of a converted module gives: the effective weight; writes go to the latent.

Code outside a forward reads ``layer.weight`` and means the weight that multiplies. It gets that
weight, as a tensor of a class of its own:

* An operator takes it like any tensor and gives a plain one; gradients reach the latent weight.
* A method that writes in place (``mul_``, ``copy_``, ``w[0] = 1``, what ``torch.nn.init`` calls)
  runs on the latent weight, which this tensor shows from then on. So do ``requires_grad_`` and
  ``register_hook``, and ``.grad`` is its.
* ``w.data = value`` sets the latent weight, and ``w += value`` adds to it, while no threshold is
  active. Under a threshold the value was most likely computed for the effective weight (an adapter
  that is merged), and the latent weight that gives the sum is another one: refused.
* ``w.detach()`` and ``w.data`` write to the latent weight too, until somebody decides whether they
  require gradients (``requires_grad_``, ``nn.Parameter(w.data)``): from then on they are tensors of
  their own, with memory and a gradient of their own.
* Views (``w[0]``, ``w.T``, ``w.view(-1)``) refuse to be written to, and so does ``w.numpy()``.

The edge: a function that is given the tensor as ``out=`` or writes to it by another way than a
method (``torch.relu_(w)``, a custom kernel) reaches only this copy. Where the copy is a kept one,
the next forward notices it and says so; a fresh copy's change is lost.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from st3fx.errors import StateError


class Source(Protocol):
    """The weight of a converted module that a tensor was read from."""

    @property
    def name(self) -> str:
        """Its full name."""

    def latent(self) -> Tensor:
        """The latent weight, as it is now."""

    def read(self) -> Tensor:
        """The effective weight, as it is now."""

    @property
    def active(self) -> bool:
        """Whether effective and latent weight may differ."""


class EffectiveWeight(Tensor):
    """An effective weight that was read from a module; writes go to the latent weight."""

    # Operators see a plain tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    st3fx_source: Source | None
    """``None`` for a tensor of its own."""
    st3fx_detached: bool

    @staticmethod
    def of(tensor: Tensor, source: Source | None, *, detached: bool = False) -> Tensor:
        """``tensor``, with its gradient's history, as a read of ``source``."""
        weight = tensor.as_subclass(EffectiveWeight)
        weight.st3fx_source = source
        weight.st3fx_detached = detached
        return weight

    def detach(self) -> Tensor:
        """The same without gradient; writes go to the latent weight, without gradient too."""
        return EffectiveWeight.of(super().detach(), self.st3fx_source, detached=True)

    @property
    def data(self) -> Tensor:
        """As :meth:`detach`."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        source = self.st3fx_source
        if source is None:
            Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
            return
        if value is self or (isinstance(value, EffectiveWeight) and value.st3fx_source is source):
            return  # `w.data *= 2` has written already
        if source.active:
            raise _not_latent(source.name, ".data of an effective weight is set", "data = ...")
        source.latent().data = value

    def _own(self) -> bool:
        """Whether gradients are this tensor's business, and no longer the latent weight's."""
        return self.st3fx_source is None or self.st3fx_detached

    @property
    def grad(self) -> Tensor | None:
        """The latent weight's gradient; that of a detached one is its own."""
        if self._own():
            return super().grad
        assert self.st3fx_source is not None
        return self.st3fx_source.latent().grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self._own():
            getattr(Tensor, "grad").__set__(self, value)  # noqa: B009 (a descriptor, typed as its value)
        else:
            assert self.st3fx_source is not None
            self.st3fx_source.latent().grad = value

    @grad.deleter
    def grad(self) -> None:
        self.grad = None

    @property
    def requires_grad(self) -> bool:
        """That of the latent weight, or ``False`` if detached."""
        return bool(Tensor.requires_grad.__get__(self))  # type: ignore[attr-defined]

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Freeze or unfreeze the latent weight; a detached one becomes a tensor of its own."""
        source = self.st3fx_source
        if source is not None and not self.st3fx_detached:
            source.latent().requires_grad_(requires_grad)
            return source.read()
        if source is not None:
            self.st3fx_source = None
            with torch.no_grad():
                Tensor.data.__set__(self, self.as_subclass(Tensor).clone())  # type: ignore[attr-defined]
        return super().requires_grad_(requires_grad)

    def register_hook(self, hook: Any) -> Any:
        """A hook on the latent weight's gradient."""
        tensor: Any = super() if self.st3fx_source is None else self.st3fx_source.latent()
        return tensor.register_hook(hook)

    def retain_grad(self) -> None:
        """Nothing: ``.grad`` is the latent weight's."""

    def numpy(self, *, force: bool = False) -> Any:
        """A read-only array."""
        array = super().numpy(force=force)
        if self.st3fx_source is not None:
            array.flags.writeable = False
        return array

    def _plain(self) -> Tensor:
        """A copy of no class of ours; a parameter of what was made one."""
        copied = self.as_subclass(Tensor).detach().clone()
        if self.st3fx_source is not None or not getattr(self, "_is_param", False):
            return copied
        return torch.nn.Parameter(copied, requires_grad=self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A plain tensor."""
        return self._plain()

    def __reduce_ex__(self, proto: Any) -> Any:
        """Pickled as a plain tensor."""
        return self._plain().__reduce_ex__(proto)


class EffectiveView(Tensor):
    """A view of an effective weight, which refuses to be written to."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    st3fx_name: str

    @property
    def data(self) -> Tensor:
        """The same, without gradient."""
        return _view(super().detach(), self.st3fx_name)

    @data.setter
    def data(self, value: Tensor) -> None:
        raise _refusal(self.st3fx_name)

    def detach(self) -> Tensor:
        """The same, without gradient."""
        return self.data

    def numpy(self, *, force: bool = False) -> Any:
        """A read-only array."""
        array = super().numpy(force=force)
        array.flags.writeable = False
        return array

    def __reduce_ex__(self, proto: Any) -> Any:
        """Pickled as a plain tensor."""
        return self.as_subclass(Tensor).detach().clone().__reduce_ex__(proto)


def _not_latent(name: str, what: str, how: str) -> StateError:
    return StateError(
        f"{name}: {what}, but its threshold is active, and what is meant for the effective weight "
        f"is no latent weight: to train, write to get_parameter({name!r}) ({how}); to merge, "
        "fold first"
    )


def _refusal(name: str) -> StateError:
    return StateError(
        f"{name}: a view of its effective weight is written to, which would be lost: write to "
        f"the latent weight, get_parameter({name!r}), or fold first"
    )


def _view(tensor: Tensor, name: str) -> Tensor:
    view = tensor.as_subclass(EffectiveView)
    view.st3fx_name = name
    return view


_OPERATORS = (
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__",
    "__imod__", "__ipow__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
)  # fmt: skip
_NO_WRITES = ("requires_grad_", "share_memory_", "retain_grad_")
WRITES = _OPERATORS + tuple(
    name
    for name in dir(Tensor)
    if name.endswith("_") and not name.startswith("_") and name not in _NO_WRITES
)
"""Methods of a tensor that change it."""

ADDING = (
    "__iadd__", "__isub__", "add_", "sub_", "subtract_", "addmm_", "addmv_", "addr_", "addbmm_",
    "baddbmm_", "sspaddmm_", "addcmul_", "addcdiv_", "lerp_", "index_add_", "scatter_add_",
)  # fmt: skip
"""Those that add to it."""

VIEWS = (
    "__getitem__", "adjoint", "as_strided", "chunk", "diagonal", "expand", "expand_as", "flatten",
    "index_select", "movedim", "moveaxis", "narrow", "permute", "ravel", "reshape", "reshape_as",
    "select", "split", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "transpose",
    "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as",
)  # fmt: skip
"""Methods whose result may share the tensor's memory."""


def _written(name: str) -> Any:
    method = getattr(Tensor, name)

    def write(self: EffectiveWeight, *args: Any, **kwargs: Any) -> Any:
        source = self.st3fx_source
        if source is None:
            return method(self, *args, **kwargs)
        if name in ADDING and source.active:
            raise _not_latent(source.name, f"{name} adds to an effective weight", f"{name}(...)")
        latent = source.latent()
        target = latent.detach() if self.st3fx_detached else latent
        getattr(target, name)(*args, **kwargs)
        # What writes step by step (torch.nn.init) reads its own last step.
        Tensor.data.__set__(self, latent.detach())  # type: ignore[attr-defined]
        return None if name == "__setitem__" else self

    write.__name__ = name
    return write


def _refused(name: str) -> Any:
    def write(self: EffectiveView, *_: Any, **__: Any) -> Any:
        raise _refusal(self.st3fx_name)

    write.__name__ = name
    return write


def _viewed(name: str) -> Any:
    found = getattr(Tensor, name)
    method = found if callable(found) else found.__get__  # ``T`` is an attribute

    def view(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if isinstance(self, EffectiveWeight):
            if self.st3fx_source is None:
                return result
            full = self.st3fx_source.name
        else:
            full = self.st3fx_name
        if isinstance(result, tuple | list):
            return type(result)(_view(item, full) for item in result)
        return _view(result, full)

    view.__name__ = name
    return view


for _name in WRITES:
    setattr(EffectiveWeight, _name, _written(_name))
    setattr(EffectiveView, _name, _refused(_name))
for _name in VIEWS:
    setattr(EffectiveWeight, _name, _viewed(_name))
    setattr(EffectiveView, _name, _viewed(_name))
for _name in ("T", "mT", "H", "mH"):
    _attribute = _viewed(_name)
    setattr(EffectiveWeight, _name, property(_attribute))
    setattr(EffectiveView, _name, property(_attribute))
