"""Which tensors of a forward are made of weights alone, and which depend on its input."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from st3fx.flops.operand import Constant, Operand, Weight, Window


@dataclass(frozen=True)
class _Mark:
    """What is known of a tensor.

    Attributes:
        weights: What it is made of; empty for an activation.
        base: The weight, or the computed tensor, of which it is a view or a copy.
        window: Of an activation: where it has real values.
    """

    weights: tuple[Weight, ...] = ()
    base: Tensor | None = None
    window: Window | None = None


class Constants:
    """Keeps apart activations and constants while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        self._marks: dict[int, tuple[weakref.ref[Tensor], _Mark]] = {}
        self._known: dict[tuple[object, ...], Constant] = {}
        self._owned: dict[int, _Mark] = {}
        self._written: dict[int, object] = {}
        for name, buffer in model.named_buffers():
            self._owned[id(buffer)] = _Mark((Weight(name, buffer, parameter=False),), buffer)
        for name, parameter in model.named_parameters():
            self._owned[id(parameter)] = _Mark((Weight(name, parameter),), parameter)

    def activate(self, tensor: Tensor, window: Window | None = None) -> None:
        """Note that a tensor depends on the model's input."""
        self._marks[id(tensor)] = (weakref.ref(tensor), _Mark(window=window))

    def overwrite(self, tensor: Tensor) -> None:
        """Note that a tensor which was constant was given values that depend on the input."""
        storage = tensor.untyped_storage()
        self._written[storage._cdata] = storage  # kept, so that no other gets its address
        self.activate(tensor)

    def _mark(self, tensor: Tensor) -> _Mark | None:
        owned = self._owned.get(id(tensor))
        if owned is not None:
            return owned
        entry = self._marks.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def is_activation(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the model's input."""
        mark = self._mark(tensor)
        if mark is not None and not mark.weights:
            return True
        return bool(self._written) and tensor.untyped_storage()._cdata in self._written

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of parameters or buffers of the model."""
        mark = self._mark(tensor)
        return mark is not None and bool(mark.weights)

    def window(self, tensor: Tensor) -> Window | None:
        """Where an activation has real values, if it was padded."""
        mark = self._mark(tensor)
        return None if mark is None else mark.window

    def derive(self, out: Tensor, sources: Sequence[Tensor], *, layout: bool) -> None:
        """Note what a tensor that was made of constants alone is made of.

        Args:
            out: What an operator gave.
            sources: The tensors that it was given.
            layout: Whether it only moved values.
        """
        marks = [mark for source in sources if (mark := self._mark(source)) is not None]
        weights = tuple({id(w): w for mark in marks for w in mark.weights}.values())
        if weights and id(out) not in self._owned:
            base = marks[0].base if layout and len(marks) == 1 else out
            self._marks[id(out)] = (weakref.ref(out), _Mark(weights, base))

    def operand(self, tensor: Tensor) -> Operand:
        """A tensor as the rules see it."""
        shape = tuple(int(size) for size in tensor.shape)
        floating = tensor.is_floating_point() or tensor.is_complex()
        if self.is_activation(tensor):
            return Operand(shape, tensor.itemsize, floating, window=self.window(tensor))
        return Operand(shape, tensor.itemsize, floating, constant=self._constant(tensor))

    def _constant(self, tensor: Tensor) -> Constant:
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape),
               tensor.stride(), tensor.dtype)  # fmt: skip
        if key not in self._known:
            mark = self._mark(tensor)
            self._known[key] = Constant(tensor, _weight(mark, tensor), tensor.itemsize)
        return self._known[key]


def _weight(mark: _Mark | None, tensor: Tensor) -> Weight:
    """The row of the report that a constant belongs to."""
    if mark is None:
        return Weight("", tensor, parameter=False)
    largest = max(mark.weights, key=lambda weight: weight.tensor.numel())
    if mark.base is None or mark.base is largest.tensor:
        return largest
    return Weight(plain_name(largest.name), mark.base, parameter=largest.parameter)


def plain_name(name: str) -> str:
    """``conv.weight`` from ``conv.parametrizations.weight.original1``."""
    return re.sub(r"(^|\.)parametrizations\.(\w+)\.original\d*$", r"\1\2", name)
