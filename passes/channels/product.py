"""A sum over channels with a static weight: convolution, linear layer, matrix product."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from st3fx.passes.channels.fact import Coupling, Ids, Kept, Mark, Mask, Slices

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """How a weight lies in memory.

    The common form is (groups, outputs of a group, inputs of a group, taps).

    Attributes:
        groups: Of channels.
        swapped: Inputs come first: a transposed convolution, or the right side of a product.
    """

    groups: int = 1
    swapped: bool = False

    def common(self, weight: Tensor) -> Tensor:
        """A view of a weight in the common form, its kernel as one dimension."""
        if self.swapped:
            weight = weight.transpose(0, 1)
        outputs, inputs = weight.shape[0] // self.groups, weight.shape[1]
        return weight.reshape(self.groups, outputs, inputs, math.prod(weight.shape[2:]))

    def restore(self, common: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Back from the common form."""
        weight = common.flatten(0, 1).reshape(-1, common.shape[2], *kernel)
        return (weight.transpose(0, 1) if self.swapped else weight).contiguous()


@dataclass(frozen=True, eq=False)
class Product:
    """One operator that sums over channels.

    Attributes:
        node: Of the graph.
        weight: Its weight's node.
        bias: Name of its argument for a bias; empty where another operator has to add it.
        layout: Of the weight.
        tensor: The weight.
        addend: The bias.
        inputs: (groups, inputs); channels that are summed over.
        outputs: (groups, outputs).
        given: Constants among the inputs.
        bordered: Whether some outputs do not see all taps: a constant is no bias then.
        editable: Whether the weight is a parameter that nothing else reads.
        work: Multiplications of one weight in one sample, with padding.
    """

    node: fx.Node
    weight: fx.Node
    bias: str
    layout: Layout
    tensor: Tensor
    addend: Tensor | None
    inputs: Ids
    outputs: Ids
    given: Slices | None
    bordered: bool
    editable: bool
    work: int

    @property
    def name(self) -> str:
        """The weight's: of the parameter, or of the node that computes it."""
        return str(self.weight.target if self.weight.op == "get_attr" else self.weight.name)

    @functools.cached_property
    def common(self) -> Tensor:
        """The weight as (groups, outputs, inputs, taps)."""
        return self.layout.common(self.tensor.detach())

    @functools.cached_property
    def reads(self) -> Mask:
        """(groups, outputs, inputs): whether an output is computed from an input."""
        mask: Mask = (self.common != 0).any(3).numpy()
        return mask

    @functools.cached_property
    def constants(self) -> Array:
        """(groups, inputs): the constants that are summed; NaN where none is known."""
        if self.given is None:
            return np.full(self.inputs.shape, np.nan)
        values = torch.where(self.given.known, self.given.values.double(), torch.nan)
        array: Array = values.numpy().reshape(self.inputs.shape)
        return array

    @functools.cached_property
    def absorbed(self) -> Mask:
        """(groups, inputs): constants that need not be read: zeros, and what a bias can take in.

        Constants at a border are among them where a carrier can stand for them.
        """
        known = ~np.isnan(self.constants)
        others = known & (self.constants != 0)
        mask: Mask = known & (~others | (self.merges if self.bordered else True))
        return mask

    @property
    def merges(self) -> bool:
        """Whether one of several constant inputs can take the filters of the others."""
        return self.bordered and self.editable and self.inputs.shape[1] > 1

    def shift(self, chosen: Mask) -> Array:
        """(groups, outputs): what chosen constant inputs add to every output value."""
        total = np.zeros(self.outputs.shape)
        for group in range(self.layout.groups):
            places = np.flatnonzero(chosen[group])
            if places.size:
                taps = self.common[group][:, places].double().sum(2).numpy()
                total[group] = taps @ self.constants[group, places]
        return total

    def constant(self) -> tuple[Tensor, Tensor]:
        """The outputs that are constant: values, and which are; each (groups × outputs,)."""
        unknown = np.isnan(self.constants)
        if self.bordered:
            unknown = unknown | (self.constants != 0)
        known = ~(self.reads & unknown[:, None, :]).any(2).reshape(-1)
        values = torch.zeros(known.size, dtype=torch.float64)
        if known.any():
            values += torch.from_numpy(self.shift(~unknown).reshape(-1))
        if self.addend is not None:
            values += self.addend.detach().double()
        return values.to(self.tensor.dtype), torch.from_numpy(known)


def work_of(shape: tuple[Any, ...], axis: int) -> int:
    """Positions in one sample at which a product is taken; sizes that are free count once."""
    sizes = [size for dim, size in enumerate(shape) if dim not in (0, axis)]
    return math.prod(size for size in sizes if isinstance(size, int))


class Notes(Coupling):
    """What the rules note: which channels are one or stay, and what works on them.

    Attributes:
        products: Operators that sum over channels with a weight.
        changes: What has to be rewritten in a node once it is known which channels stay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.changes: list[Callable[[Kept], Any]] = []

    @property
    def _notes(self) -> tuple[list[Any], ...]:
        return *super()._notes, self.products, self.changes

    def has_product_since(self, mark: Mark) -> bool:
        """Whether a product has been noted since."""
        return len(self.products) > mark[2]
