"""What rules are given and what they give back.

They see a tensor as an :class:`Operand`, a shape with values where it is constant, and give the
MACs of a product, or the operations of anything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """Channels of a weight, and how many of them have no nonzero.

    Attributes:
        inputs: Input channels, of all groups together.
        outputs: Output channels.
        dead_inputs: Input channels without a nonzero.
        dead_outputs: Output channels without one.
        seen: The shape (groups, first, second) that the weight's first dimensions are seen in.
        outputs_first: Whether ``first`` are the outputs of a group, or its inputs.
    """

    inputs: int
    outputs: int
    dead_inputs: int = 0
    dead_outputs: int = 0
    seen: tuple[int, int, int] = (1, 1, 1)
    outputs_first: bool = True


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive input channels at one tap, for one output channel.

    Attributes:
        fill: How many blocks have 0, 1, 2, ... nonzeros, as many entries as a block has weights
            and one.
        zeros: Zeros in blocks that have a nonzero.
    """

    fill: tuple[int, ...]
    zeros: int


@dataclass(frozen=True)
class Product:
    """Multiplications that are added up.

    Attributes:
        op: ``conv2d``, ``linear``, ``attention``, ...
        dense: MACs with every scalar of the weight, real input values only.
        sparse: The same with the weight's nonzeros.
        dense_padded: MACs with every scalar, padding counted.
        sparse_padded: The same with the weight's nonzeros.
        constant: The weight; ``None`` for a product of two activations.
        channels: Of the weight, where it is one.
    """

    op: str
    dense: int
    sparse: int
    dense_padded: int
    sparse_padded: int
    constant: Constant | None = None
    channels: Channels | None = None


@dataclass(frozen=True)
class Elementwise:
    """Operations that are no MACs.

    Attributes:
        op: ``relu``, ``batch_norm``, ``softmax``, ...
        flops: Additions, multiplications, comparisons and functions, one each.
        pooled: Input values of average pooling, padding counted: what ``str`` adds to the MACs.
    """

    op: str
    flops: int
    pooled: int = 0


@dataclass(frozen=True)
class Lookup:
    """Rows of a table that are copied: an embedding, which multiplies nothing."""

    constant: Constant


Counted = Product | Elementwise | Lookup


Window = tuple[tuple[int, int], ...]
"""For each of the last dimensions, where real values begin and end; outside are zeros."""


def count_nonzero(tensor: Tensor) -> int:
    """The number of scalars that are not zero; of one that is repeated, without looking at all."""
    if tensor.numel() and not any(tensor.stride()):
        return tensor.numel() * int(torch.count_nonzero(tensor.reshape(-1)[:1]))
    return int(torch.count_nonzero(tensor))


class Weight:
    """A named tensor of a model, as one row of the report shows it."""

    def __init__(self, name: str, tensor: Tensor, *, parameter: bool = True) -> None:
        """Name what is in the model.

        Args:
            name: Full name; empty where the model gives it none.
            tensor: Its values, or whether each is not zero.
            parameter: Whether it counts among the parameters.
        """
        self.name = name
        self.tensor = tensor
        self.parameter = parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the whole tensor."""
        return tuple(self.tensor.shape)

    @cached_property
    def nonzeros(self) -> int:
        """The number of its scalars that are not zero."""
        return count_nonzero(self.tensor)


class Constant:
    """Values that multiply: a weight, or what a model computes from weights alone.

    It keeps what was counted, as a recurrent cell uses the same values at every step.
    """

    def __init__(self, tensor: Tensor, weight: Weight, itemsize: int) -> None:
        """Wrap values.

        Args:
            tensor: The values as they multiply, or whether each is not zero.
            weight: Where they come from.
            itemsize: Bytes that each scalar takes in the model.
        """
        self.tensor = tensor
        self.weight = weight
        self.itemsize = itemsize
        self._alive: dict[tuple[int, ...], tuple[int, int]] = {}
        self._parts: dict[tuple[object, ...], Constant] = {}

    def part(self, key: tuple[object, ...], tensor: Tensor) -> Constant:
        """Some of the values, or the same ones in another order; one object for each ``key``."""
        return self._parts.setdefault(key, Constant(tensor, self.weight, self.itemsize))

    @cached_property
    def mask(self) -> Tensor:
        """Whether each scalar is not zero; a negative zero is zero."""
        tensor = self.tensor.detach()
        return tensor if tensor.dtype == torch.bool else tensor != 0

    @cached_property
    def nonzeros(self) -> int:
        """The number of scalars that are not zero."""
        if self.tensor is self.weight.tensor:
            return self.weight.nonzeros
        return count_nonzero(self.__dict__.get("mask", self.tensor))

    def keep(self) -> None:
        """Remember what matters of the values, before something writes to them."""
        self.__dict__["mask"] = self.mask.clone() if self.mask is self.tensor else self.mask
        assert self.nonzeros >= 0
        assert self.weight.nonzeros >= 0

    @cached_property
    def per_tap(self) -> list[int]:
        """Nonzeros of a convolution's weight at each position of its kernel, in row-major order."""
        taps = math.prod(self.tensor.shape[2:])
        if taps == 1:
            return [self.nonzeros]
        return [int(count) for count in self.mask.reshape(-1, taps).sum(0)]

    @cached_property
    def per_matrix(self) -> list[int]:
        """Nonzeros of each matrix of a batch, along the first dimension."""
        return [int(count) for count in self.mask.flatten(1).sum(1)]

    def blocks(self, channels: Channels, size: int) -> Blocks:
        """Blocks of ``size`` weights along the input channels; a row's last may be shorter."""
        dim = 2 if channels.outputs_first else 1
        mask = self.mask.reshape(*channels.seen, -1).movedim(dim, -1)
        rest = mask.shape[-1] % size
        fill, zeros = [0] * (size + 1), 0
        for part, length in ((mask[..., : mask.shape[-1] - rest], size), (mask[..., -rest:], rest)):
            if not length or not part.numel():
                continue
            counts = part.unflatten(-1, (-1, length)).sum(-1, dtype=torch.int32).flatten()
            for left, blocks in enumerate(torch.bincount(counts, minlength=length + 1).tolist()):
                fill[left] += blocks
                zeros += blocks * (length - left) if left else 0
        return Blocks(tuple(fill), zeros)

    def dead(self, groups: int, first: int, second: int) -> tuple[int, int]:
        """Channels without a nonzero, of the tensor seen as (groups, first, second, rest).

        Returns:
            How many of the ``groups × first`` and of the ``groups × second`` channels.
        """
        key = (groups, first, second)
        if key not in self._alive:
            if self.nonzeros == self.tensor.numel():
                self._alive[key] = (0, 0)
            else:
                pairs = self.mask.reshape(groups, first, second, -1).any(3)
                self._alive[key] = (
                    groups * first - int(pairs.any(2).sum()),
                    groups * second - int(pairs.any(1).sum()),
                )
        return self._alive[key]


@dataclass(frozen=True)
class Operand:
    """A tensor that takes part in an operation.

    Attributes:
        shape: Its sizes.
        itemsize: Bytes of a scalar.
        floating: Whether arithmetic on it counts: floating-point or complex.
        constant: Its values, unless it depends on the model's input.
        window: Where it has real values, after explicit padding with zeros.
    """

    shape: tuple[int, ...]
    itemsize: int = 4
    floating: bool = True
    constant: Constant | None = None
    window: Window | None = None

    @property
    def numel(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.numel * self.itemsize
