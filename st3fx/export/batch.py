"""The sizes that are free in a file: the batch, a sequence's length, an image's sides.

Which dimension of which tensor has which of them, and the same call with other sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from st3fx.errors import ExportError
from st3fx.plan.example import batch_in

Dim = int | bool | None
"""Which dimension of a tensor is the batch: ``True`` says 0, ``None`` and ``False`` say none."""


def batched(tensors: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which tensors have the batch as dimension 0: all whose size there is the most common one."""
    batch = batch_in(tensors)
    return tuple(tensor.dim() > 0 and tensor.shape[0] == batch for tensor in tensors)


def dimension(which: Dim) -> int | None:
    """The number of the batch dimension; ``None`` where there is none."""
    if which is None or which is False:
        return None
    return 0 if which is True else which


def batch_size(tensors: Sequence[Tensor], which: Sequence[Dim]) -> int | None:
    """Samples in a call; ``None`` where no tensor has a batch."""
    pairs = zip(tensors, map(dimension, which), strict=True)
    return next((tensor.shape[dim] for tensor, dim in pairs if dim is not None), None)


def repeated(tensors: Sequence[Tensor], which: Sequence[Dim], batch: int) -> tuple[Tensor, ...]:
    """The samples again and again, until there are ``batch`` of them."""
    return tuple(_repeated(t, dimension(has), batch) for t, has in zip(tensors, which, strict=True))


def _repeated(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    if dim is None:
        return tensor
    return tensor.index_select(dim, torch.arange(batch, device=tensor.device) % tensor.shape[dim])


def random_like(
    tensors: Sequence[Tensor], which: Sequence[Dim], batch: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Random values in the range of the example's: never an index that it would not take.

    Floats are normal with the example's mean and deviation, integers lie between its smallest and
    largest, and booleans are the example's own samples.
    """
    return tuple(
        _random(t, dimension(has), batch, generator) for t, has in zip(tensors, which, strict=True)
    )


def _random(example: Tensor, dim: int | None, batch: int, generator: torch.Generator) -> Tensor:
    if not example.numel() or example.dtype == torch.bool or example.is_complex():
        return _repeated(example, dim, batch) if example.numel() else example
    shape = [batch if axis == dim else size for axis, size in enumerate(example.shape)]
    if example.dtype.is_floating_point:
        values = example.double()
        spread = float(values.std(correction=0)) or 1.0
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (noise * spread + values.mean()).to(example.dtype)
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)


BATCH = "batch"
"""Name of the batch in a file."""

Names = tuple[dict[int, str], ...]
"""For each input tensor: dimension -> name of the free size."""


@dataclass(frozen=True)
class FreeSize:
    """One dimension of one input.

    Attributes:
        input: Name of the input.
        dim: Which of its dimensions. Dimension 0 is the batch, unless another one is.
        name: Of the size in the file; dimensions of one name have one size. ``batch`` says that
            this dimension is the batch.
    """

    input: str
    dim: int
    name: str

    @classmethod
    def of(cls, free: Mapping[str, Mapping[int, str]] | None) -> tuple[FreeSize, ...]:
        """From ``{"input_ids": {1: "sequence"}, "state": {1: "batch"}}``."""
        table = (free or {}).items()
        return tuple(cls(key, dim, name) for key, dims in table for dim, name in dims.items())


def names(free: Sequence[FreeSize], inputs: Sequence[str], tensors: Sequence[Tensor]) -> Names:
    """The free dimensions of each input.

    Raises:
        ExportError: For an input or a dimension that is not there, a name that is none, or a name
            whose dimensions differ in the example.
    """
    found: Names = tuple({} for _ in inputs)
    sizes: dict[str, int] = {}
    placed = {item.input for item in free if item.name == BATCH}
    for item in free:
        where = f"free size {item.input}:{item.dim}={item.name}"
        if item.input not in inputs:
            raise ExportError(f"{where}: the inputs are {', '.join(inputs)}")
        index = inputs.index(item.input)
        shape = tuple(tensors[index].shape)
        lowest = 0 if item.input in placed else 1
        if not lowest <= item.dim < len(shape):
            raise ExportError(
                f"{where}: give a dimension from 1 to {len(shape) - 1} of {shape}; dimension 0 is "
                f"the batch, unless another one is named so ({item.input}:1={BATCH})"
            )
        if not item.name.isidentifier():
            raise ExportError(f"{where}: give a name of letters, e.g. sequence")
        if item.name == BATCH and BATCH in found[index].values():
            raise ExportError(f"{where}: another dimension of {item.input} is {BATCH} already")
        if sizes.setdefault(item.name, shape[item.dim]) != shape[item.dim]:
            raise ExportError(
                f"{where}: {item.name} is {sizes[item.name]} elsewhere in the example"
            )
        found[index][item.dim] = item.name
    return found


def batch_dims(names: Names, tensors: Sequence[Tensor]) -> tuple[tuple[int | None, ...], ...]:
    """The dimension of each tensor that is the batch, in the order in which to try them.

    Where it is named for some inputs, the others may have it as dimension 0, which their size there
    says, or not at all. Where it is not named, all tensors of the most common size in dimension 0
    have it there, but for those for which another name was given to that.

    Args:
        names: The free dimensions of each input.
        tensors: The example's.
    """
    own = [next((d for d, name in dims.items() if name == BATCH), None) for dims in names]
    known = [t.shape[d] for t, d in zip(tensors, own, strict=True) if d is not None]
    if not known:
        open_ = [t for t, dims in zip(tensors, names, strict=True) if 0 not in dims]
        has = iter(batched(open_))
        return (tuple(None if 0 in dims or not next(has) else 0 for dims in names),)
    more = tuple(
        0 if d is None and not dims and t.dim() and t.shape[0] == known[0] else d
        for t, d, dims in zip(tensors, own, names, strict=True)
    )  # fmt: skip
    return tuple(dict.fromkeys((more, tuple(own))))


def without_batch(names: Names) -> Names:
    """The free dimensions that are not the batch."""
    return tuple({d: name for d, name in dims.items() if name != BATCH} for dims in names)


def resized(tensors: Sequence[Tensor], free: Names, change: int) -> tuple[Tensor, ...]:
    """The same call with all free sizes larger by ``change``, what is new repeated from the start.

    No size gets smaller than 2: of a size of 1 exporters take it that it is broadcast.
    """
    return tuple(_resized(tensor, dims, change) for tensor, dims in zip(tensors, free, strict=True))


def _resized(tensor: Tensor, dims: dict[int, str], change: int) -> Tensor:
    for dim in dims:
        size = tensor.shape[dim]
        tensor = tensor.index_select(dim, torch.arange(max(2, size + change)) % size)
    return tensor


def other_sizes(tensors: Sequence[Tensor], free: Names) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Calls of other sizes, the smaller ones first, each with what to call it."""
    for change in (-1, 3):
        changed = resized(tensors, free, change)
        sizes = {
            name: tensor.shape[dim]
            for tensor, dims in zip(changed, free, strict=True)
            for dim, name in dims.items()
        }
        yield ", ".join(f"{name} {size}" for name, size in sizes.items()), changed
