"""Effective weights that are not kept: computed in a forward, and again where its backward asks.

What autograd saves of an effective weight, itself or a view of it, is replaced by how it was
computed; the backward of the operator that used it computes it anew, with the same bits, and drops
it. So at most one lies in memory at a time, as with checkpointed activations. Everything else is
saved as it would be, by the hooks of others if there are any, and is as safe from being written to.

As with a dense model, the backward needs the weights that the forward has had: one that was written
to in between is refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from st3fx.errors import StateError


@dataclass(frozen=True)
class _Made:
    """How an effective weight was computed.

    Attributes:
        compute: Gives it.
        arguments: What ``compute`` is given.
        versions: Of those that are tensors.
        memory: That of the result, whose identity does not come back as long as this is held.
    """

    compute: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    versions: tuple[int, ...]
    memory: StorageWeakRef

    def again(self) -> Tensor:
        """The effective weight, computed anew.

        Raises:
            StateError: If something that it is computed from was written to.
        """
        if self.versions != _versions(self.arguments):
            shape = "x".join(map(str, self.arguments[0].shape))
            raise StateError(
                f"a weight of shape {shape}, or its threshold, was written to between a forward "
                "and its backward, which computes the effective weight again: step the optimizer "
                "after the backward, or leave recompute_weights out"
            )
        with torch.no_grad():
            return self.compute(*self.arguments)


@dataclass(frozen=True)
class _View:
    """What autograd has saved of an effective weight."""

    made: _Made
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Saved:
    """Any other tensor, as it was when autograd saved it."""

    tensor: Tensor
    version: int


class _Active(threading.local):
    """The effective weights that the forward under way in a thread has computed."""

    made: dict[int, _Made] | None = None


_ACTIVE = _Active()


def note(effective: Tensor, compute: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
    """An effective weight has been computed, as it may be again."""
    made = _ACTIVE.made
    if made is not None and type(effective) is Tensor:
        storage = effective.untyped_storage()
        reference = StorageWeakRef(storage)
        made[storage._cdata] = _Made(compute, arguments, _versions(arguments), reference)


@contextlib.contextmanager
def dropping() -> Iterator[None]:
    """Forwards inside keep no effective weight for their backward."""
    if _ACTIVE.made is not None:
        yield
        return
    made: dict[int, _Made] = {}
    others: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)

    def pack(tensor: Tensor) -> Any:
        own = made.get(_memory(tensor))
        if own is not None:
            offset = int(tensor.storage_offset())
            return _View(own, tuple(tensor.shape), tensor.stride(), offset)
        if others is not None:
            return others[0](tensor)
        # The result of an operator would hold the operator, which holds what it has saved.
        saved = tensor if tensor.is_leaf else tensor.detach()
        return _Saved(saved, 0 if tensor.is_inference() else tensor._version)

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, _View):
            return packed.made.again().as_strided(packed.size, packed.stride, packed.offset)
        if not isinstance(packed, _Saved):
            assert others is not None
            result: Tensor = others[1](packed)
            return result
        if not packed.tensor.is_inference() and packed.tensor._version != packed.version:
            shape = "x".join(map(str, packed.tensor.shape))
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a tensor of shape {shape} is at version "
                f"{packed.tensor._version}; expected version {packed.version} instead"
            )
        return packed.tensor

    _ACTIVE.made = made
    try:
        with saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _ACTIVE.made = None


def _memory(tensor: Tensor) -> int:
    """The identity of a tensor's memory; 0 of tensors that have none."""
    if tensor.layout is not torch.strided or is_functorch_wrapped_tensor(tensor):
        return 0
    try:
        identity: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0
    return identity


def _versions(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(
        argument._version
        for argument in arguments
        if isinstance(argument, Tensor) and not argument.is_inference()
    )
