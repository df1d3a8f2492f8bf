"""Tensors of every kind (dense, sparse, nested) as the dense tensors that they are made of.

Most of torch's functions refuse one kind or another; what compares, copies or sets back tensors
of a user's model goes through here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"),
    torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"),
    torch.sparse_bsc: ("ccol_indices", "row_indices"),
}


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is neither sparse nor nested."""
    return tensor.layout is torch.strided and not tensor.is_nested


def in_memory_order(tensor: Tensor) -> Tensor:
    """``tensor`` with its dimensions in the order of its memory: contiguous, if it is dense."""
    return tensor if tensor.is_contiguous() else tensor.permute(memory_order(tensor))


def memory_order(tensor: Tensor) -> list[int]:
    """The dimensions of a tensor in the order of its memory."""
    dims, strides = range(tensor.dim()), tensor.stride()
    return list(dims) if tensor.is_contiguous() else sorted(dims, key=lambda dim: -strides[dim])


def parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor is made of, in its own memory; itself if it is dense."""
    tensor = tensor.detach()
    if tensor.is_nested:
        if tensor.layout is torch.strided:
            return [tensor.values(), tensor._nested_tensor_size(), tensor._nested_tensor_strides()]
        lengths = tensor.lengths()  # type: ignore[attr-defined]
        return [tensor.values(), tensor.offsets(), *([] if lengths is None else [lengths])]  # type: ignore[attr-defined]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in _COMPRESSED:
        return [*(getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]), tensor.values()]
    return [tensor]


def kind_of(tensor: Tensor) -> tuple[Any, ...]:
    """What must agree before values are compared: layout, dtype and, where it has one, shape."""
    nested = tensor.is_nested
    shape = (tensor.dim(),) if nested else tuple(tensor.shape)
    return (tensor.layout, nested, tensor.dtype, tensor.device, shape)


class Saved:
    """A tensor as it is now, to compare with and to go back to: its memory, its sizes, its values.

    Attributes:
        tensor: The tensor itself.
    """

    def __init__(self, tensor: Tensor, values: Tensor | None = None) -> None:
        """Keep it.

        Args:
            tensor: Any.
            values: A tensor that has the same values and keeps them; by default they are copied.
        """
        self.tensor = tensor
        self._alias = tensor.detach()
        self._copies = parts(values) if values is not None else [p.clone() for p in parts(tensor)]

    @property
    def moved(self) -> bool:
        """Whether it lies elsewhere, or has other sizes: after ``.data =``, ``set_``, a resize."""
        if kind_of(self.tensor) != kind_of(self._alias):
            return True
        here, there = parts(self.tensor), parts(self._alias)
        return any(map(_differs_in_memory, here, there))

    @property
    def changed(self) -> bool:
        """Whether it has :attr:`moved`, or any bit of it, as far as it has values, is another."""
        if self.moved or self._is_empty():
            return self.moved
        return not all(map(same_bits, parts(self.tensor), self._copies))

    def restore(self) -> None:
        """Set memory, sizes and values back."""
        if self._is_empty():
            return
        if self.moved:
            self.tensor.data = self._alias
        with torch.no_grad():
            for part, copy in zip(parts(self._alias), self._copies, strict=True):
                part.copy_(copy)

    def _is_empty(self) -> bool:
        return self.tensor.is_meta or is_fake(self.tensor)


def _differs_in_memory(here: Tensor, there: Tensor) -> bool:
    return _place(here) != _place(there)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata
    return (tensor.shape, tensor.stride(), tensor.storage_offset(), storage)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two dense tensors of one shape and dtype have the same bits, those of NaN too."""
    if left.is_complex():
        left, right = torch.view_as_real(left), torch.view_as_real(right)
    if left.is_floating_point() and left.element_size() in _INTEGERS:
        kind = _INTEGERS[left.element_size()]
        left, right = left.view(kind), right.view(kind)
    return torch.equal(left, right)
