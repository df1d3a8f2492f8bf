"""Which tensors of a forward are made of weights alone, and which depend on its input.

Of the observer's work this is the part that knows no operator: what a tensor is made of, where a
padded one has real values, and what was written over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from st3fx.flops.operand import Constant, Operand, Weight, Window
from st3fx.provenance import Marks


@dataclass(frozen=True)
class _Mark:
    """What is known of a tensor.

    Attributes:
        weights: What it is made of; empty where it depends on the input.
        base: The weight, or the computed tensor, of which it is a view or a copy.
        window: Of an activation: where it has real values.
        active: Whether it counts as an activation: it depends on the input, or is what a layer
            makes of constants (a learned query, a step from an initial state).
    """

    weights: tuple[Weight, ...] = ()
    base: Tensor | None = None
    window: Window | None = None
    active: bool = False


class Constants:
    """Keeps apart activations and constants while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        self._marks = Marks[_Mark](of_memory=False)  # of a padded tensor's views, each has its own
        self._overwritten = Marks[bool](of_memory=True)
        self._known: dict[tuple[object, ...], Constant] = {}
        self._changed: dict[int, object] = {}
        self._kept: list[Tensor] = []  # of which no other gets the address
        buffers = dict(model.named_buffers())
        for name, buffer in buffers.items():
            self._own(name, buffer, parameter=False)
        for name, parameter in model.named_parameters():
            # torch.nn.utils.prune: conv.weight is conv.weight_orig · conv.weight_mask.
            short = name.removesuffix("_orig")
            pruned = short != name and f"{short}_mask" in buffers
            self._own(short if pruned else name, parameter)

    def _own(self, name: str, tensor: Tensor, *, parameter: bool = True) -> None:
        weight = Weight(name, dense(tensor), parameter=parameter)
        self._marks.own(tensor, _Mark((weight,), weight.tensor))

    def activate(
        self, tensor: Tensor, window: Window | None = None, made_of: Sequence[Tensor] = ()
    ) -> None:
        """Note that a tensor counts as an activation.

        Args:
            tensor: It.
            window: Where it has real values.
            made_of: What it was computed from where nothing of that depends on the input.
        """
        weights = self._weights(made_of)
        base = tensor if weights else None
        self._marks.put(tensor, _Mark(weights, base, window, active=True))

    def fix(self, tensor: Tensor) -> None:
        """Note that what layers made of constants is a weight after all."""
        mark = self._marks.of(tensor)
        if mark is not None and mark.active and mark.weights:
            self._marks.put(tensor, _Mark(mark.weights, tensor))

    def overwrite(self, tensor: Tensor) -> None:
        """Note that a tensor which was constant was given values that depend on the input."""
        self._overwritten.put(tensor, True)
        self.activate(tensor)

    def change(self, tensor: Tensor) -> None:
        """Note that a constant gets other values now, which are constant too."""
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            self._changed[storage._cdata] = storage
            self._keep({storage._cdata})

    def settle(self) -> None:
        """Remember the values of all constants that something wrote to."""
        self._keep(self._changed)

    def _keep(self, storages: Collection[object]) -> None:
        for key in [key for key in self._known if key[0] in storages]:
            self._known.pop(key).keep()

    def is_activation(self, tensor: Tensor) -> bool:
        """Whether a tensor counts as an activation."""
        mark = self._marks.of(tensor)
        return (mark is not None and mark.active) or bool(self._overwritten.of(tensor))

    def is_dependent(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the model's input."""
        mark = self._marks.of(tensor)
        return (mark is not None and not mark.weights) or bool(self._overwritten.of(tensor))

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of parameters or buffers of the model."""
        mark = self._marks.of(tensor)
        return mark is not None and bool(mark.weights) and not mark.active

    def window(self, tensor: Tensor) -> Window | None:
        """Where an activation has real values, if it was padded."""
        mark = self._marks.of(tensor)
        return None if mark is None else mark.window

    def _weights(self, sources: Sequence[Tensor]) -> tuple[Weight, ...]:
        marks = [mark for source in sources if (mark := self._marks.of(source)) is not None]
        return tuple({id(w): w for mark in marks for w in mark.weights}.values())

    def derive(self, out: Tensor, sources: Sequence[Tensor], *, layout: bool) -> None:
        """Note what a tensor that was made of constants alone is made of.

        Args:
            out: What an operator gave.
            sources: The tensors that it was given.
            layout: Whether it only moved values.
        """
        marks = [mark for source in sources if (mark := self._marks.of(source)) is not None]
        weights = self._weights(sources)
        if weights:
            base = marks[0].base if layout and len(marks) == 1 else out
            self._marks.put(out, _Mark(weights, base))

    def operand(self, tensor: Tensor, *, is_weight: bool = False) -> Operand:
        """A tensor as the rules see it.

        Args:
            tensor: It.
            is_weight: Whether it is what an input is multiplied with: then it is a weight, however
                it was made of constants.
        """
        shape = tuple(int(size) for size in tensor.shape)
        floating = tensor.is_floating_point() or tensor.is_complex()
        made = is_weight and not self.is_dependent(tensor)
        if self.is_activation(tensor) and not made:
            return Operand(shape, tensor.itemsize, floating, window=self.window(tensor))
        return Operand(shape, tensor.itemsize, floating, constant=self._constant(tensor))

    def _constant(self, tensor: Tensor) -> Constant:
        key = _place(tensor)
        if key not in self._known:
            mark = self._marks.of(tensor)
            if tensor.layout != torch.strided:
                self._kept.append(tensor)
            self._known[key] = Constant(dense(tensor), _weight(mark, tensor), tensor.itemsize)
        return self._known[key]


def dense(tensor: Tensor) -> Tensor:
    """A tensor itself, or, of one that is stored sparse, where its values are not zero."""
    return tensor if tensor.layout == torch.strided else tensor.detach().to_dense() != 0


def _place(tensor: Tensor) -> tuple[object, ...]:
    """What two tensors with the same values in the same memory have in common."""
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape),
            tensor.stride(), tensor.dtype)  # fmt: skip


def _weight(mark: _Mark | None, tensor: Tensor) -> Weight:
    """The row of the report that a constant belongs to."""
    if mark is None:
        return Weight("", dense(tensor), parameter=False)
    # Of a weight and its mask, which have one size, the weight.
    largest = max(mark.weights, key=lambda weight: (weight.tensor.numel(), weight.parameter))
    if mark.base is None or mark.base is largest.tensor:
        return largest
    return Weight(plain_name(largest.name), dense(mark.base), parameter=largest.parameter)


def plain_name(name: str) -> str:
    """``conv.weight`` from ``conv.parametrizations.weight.original1``."""
    return re.sub(r"(^|\.)parametrizations\.(\w+)\.original\d*$", r"\1\2", name)
