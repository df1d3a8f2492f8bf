r"""What is pruned together: single weights, blocks, N of M, whole output channels.

A method compares a magnitude with its threshold. For single weights that is ``|w|``; for a group
``g`` of weights it is their root mean square, and soft thresholding becomes the proximal step of
the group's norm (the group lasso of Yuan & Lin, 2006):

    ‖g‖ = √(mean of w² over g),   ŵ = w · (1 − θ/‖g‖)₊

With N of M the group is the M − N smallest of M consecutive weights, so that of M consecutive
weights all are left, or N; no threshold reaches the N largest, whose magnitude is the largest
number. As the threshold rises, group after group goes from dense to N of M, those first that lose
least.

Consecutive are input channels at one tap of a convolution, input features of a matrix product. A
row's last group may be shorter. A weight with fewer input channels than a block (a stem, a
depthwise convolution) is pruned weight by weight.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from st3fx.errors import MethodError
from st3fx.native import latent
from st3fx.plan.sites import Site
from st3fx.sparsity import gpu
from st3fx.tensors import in_memory_order

SCHEMA = "int[] group_dims=[], int group_kept=0, int group_size=0, int group_view=0"
"""Of a :class:`Grouping` in an operator's schema; single weights have the defaults.

The last is never 0 for groups: torch takes arguments away that equal their defaults.
"""


class Grouping(NamedTuple):
    """The groups of one weight.

    Attributes:
        dims: Dimensions of the weight's view along which a group lies.
        kept: How many of a group stay (the N of N of M); 0 where it goes as a whole.
        size: Consecutive weights of a group along the one dimension; 0 for all of ``dims``.
        view: The weight is viewed with its first dimension as ``(view, -1)``, if above 1
            (transposed convolutions, see :class:`st3fx.plan.sites.Layout`).
    """

    dims: Sequence[int]
    kept: int
    size: int
    view: int


class Part(NamedTuple):
    """Groups of one size: a view of the weight, and the dimensions of it that are the group's.

    Those of whole channels, or of more weights than the kernels take in any order, are long.
    """

    view: Tensor
    dims: tuple[int, ...]
    is_long: bool

    @property
    def size(self) -> int:
        """Weights of a group."""
        return math.prod(self.view.shape[dim] for dim in self.dims)


def parts(tensor: Tensor, grouping: Grouping) -> list[Part]:
    """All groups of a weight as views: the whole ones, then the short ones at the ends of rows."""
    dims, _, size, groups = grouping
    view = tensor.unflatten(0, (groups, -1)) if groups > 1 else tensor
    if size == 0:
        return [Part(view, tuple(dims), is_long=True)]
    (dim,) = dims
    extent = view.shape[dim]
    whole, is_long = extent - extent % size, size > latent.LONGEST
    found = []
    if whole:
        found.append(
            Part(view.narrow(dim, 0, whole).unflatten(dim, (-1, size)), (dim + 1,), is_long)
        )
    if whole < extent:
        rest = view.narrow(dim, whole, extent - whole).unsqueeze(dim)
        found.append(Part(rest, (dim + 1,), is_long))
    return found


def _root_mean_square(part: Part, pruned: Tensor | None = None, among: int = 0) -> Tensor:
    """One value for each group, its dimensions kept; of those that are ``pruned``, if given."""
    if part.is_long:  # in double precision the order of the sum hardly ever matters
        norm: Tensor = torch.linalg.vector_norm(
            part.view, dim=part.dims, keepdim=True, dtype=torch.float64
        )
        return (norm * norm).div_(part.size).sqrt_().to(part.view.dtype)
    count = among or part.size
    total = _sum_of_squares(part.view, part.dims[0], pruned)
    # In fp32 torch's square root is not rounded correctly everywhere (MKL's is not); this one is.
    root = (total / count).double().sqrt_()
    if total.dtype == torch.float32:
        exact = _sum_of_squares(part.view.double(), part.dims[0], pruned).div_(count).sqrt_()
        root = torch.where((total >= _SMALLEST) & (total <= _LARGEST), root, exact)
    return root.to(total.dtype).unsqueeze_(part.dims[0])


_SMALLEST, _LARGEST = 2.0**-100, torch.finfo(torch.float32).max
"""Where a sum of squares is exact in single precision; elsewhere it is taken in double."""


def _sum_of_squares(view: Tensor, dim: int, pruned: Tensor | None) -> Tensor:
    """In the order of the weights, with the same bits on every device."""
    squares = view * view
    if pruned is not None:
        squares.masked_fill_(~pruned, 0.0)
    first, *others = squares.unbind(dim)
    total = first.clone()
    for other in others:
        total += other
    return total


def _smallest(part: Part, count: int) -> Tensor:
    """Which weights are among the ``count`` smallest of their group; of equals, the later ones."""
    (dim,) = part.dims
    magnitudes = part.view.abs().unbind(dim)
    found = []
    for here, own in enumerate(magnitudes):
        rank = torch.zeros_like(own, dtype=torch.uint8)
        for place, other in enumerate(magnitudes):
            if place != here:
                rank += other <= own if place > here else other < own
        found.append(rank < count)
    return torch.stack(found, dim)


def _magnitude(part: Part, kept: int) -> Tensor:
    """What decides on each weight; broadcasts with the part."""
    if not kept:
        return _root_mean_square(part)
    if part.size <= kept:
        return part.view.new_full((1,) * part.view.dim(), torch.finfo(part.view.dtype).max)
    pruned = _smallest(part, part.size - kept)
    own = _root_mean_square(part, pruned, part.size - kept)
    return torch.where(pruned, own, torch.finfo(own.dtype).max)


def magnitudes(weight: Tensor, *grouping: Any) -> Tensor:
    """What a method compares with its threshold, for each weight: ``|w|``, or its group's.

    Args:
        weight: Any shape.
        grouping: Of a :class:`Grouping`; nothing for single weights.

    Returns:
        A new tensor of the weight's shape and strides; for groups in fp32 at least.
    """
    if not grouping:
        return weight.abs()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    groups, result = Grouping(*grouping), torch.empty_like(weight)
    memory = in_memory(weight, groups)
    if memory is not None and weight.stride() == result.stride():
        _measure(weight, result, memory, spread=True)
        return result
    for part, place in zip(parts(weight.detach(), groups), parts(result, groups), strict=True):
        place.view.copy_(_magnitude(part, groups.kept))
    return result


def in_memory(weight: Tensor, grouping: Grouping) -> latent.Groups | None:
    """How groups lie in memory, for kernels; ``None`` where there are none that fit."""
    if type(weight) not in (Tensor, torch.nn.Parameter) or weight.dtype != torch.float32:
        return None
    on_cpu = weight.device.type == "cpu" and latent.available()
    if not on_cpu and not gpu.available(weight.device):
        return None
    dims, *others = grouping
    return _in_memory(weight.shape, weight.stride(), Grouping(tuple(dims), *others))


@functools.lru_cache(maxsize=4096)
def _in_memory(
    shape: tuple[int, ...], stride: tuple[int, ...], grouping: Grouping
) -> latent.Groups | None:
    """The same for memory of a shape and strides; asked for each site several times a step."""
    dims, kept, size, view = grouping
    weight = torch.empty_strided(shape, stride, device="meta")
    if (
        view > 1
        or size > latent.LONGEST
        or not weight.numel()
        or not in_memory_order(weight).is_contiguous()
    ):
        return None
    if size == 0:
        length = weight.numel() // len(weight)
        if dims != tuple(range(1, weight.dim())) or stride[0] != length:
            return None
        return latent.Groups(length, 1, length, -1)
    if shape[dims[0]] < 2:  # its stride says nothing
        return None
    return latent.Groups(shape[dims[0]], stride[dims[0]], size, kept)


def _measure(weight: Tensor, out: Tensor, groups: latent.Groups, *, spread: bool) -> None:
    if gpu.available(weight.device):
        from st3fx.sparsity.gpu import groups as kernel  # noqa: PLC0415 (Triton is not everywhere)

        kernel.measure(weight, out, groups, spread=spread)
        return
    rows = weight.numel() // (groups.extent * groups.inner)
    own = latent.Measured(weight.data_ptr(), out.data_ptr(), rows, groups, spread)
    latent.measure([own])


def group_means(tensor: Tensor, *grouping: Any) -> Tensor:
    """The mean over each weight's group, for each weight.

    Args:
        tensor: Of the weight's shape.
        grouping: Of a :class:`Grouping` whose groups go as a whole, or nothing for single weights,
            whose mean is ``tensor`` itself.
    """
    if not grouping:
        return tensor
    groups, result = Grouping(*grouping), torch.empty_like(tensor)
    for part, place in zip(parts(tensor, groups), parts(result, groups), strict=True):
        place.view.copy_(part.view.mean(part.dims, keepdim=True))
    return result


def unit(weight: Tensor, magnitude: Tensor) -> Tensor:
    """``w/‖g‖``: the derivative of ``‖g‖`` by a weight, times the number of weights in its group.

    Args:
        weight: The weight, any floating dtype.
        magnitude: As :func:`magnitudes` gives it; where it is 0 so is the result.
    """
    return weight / magnitude.clamp_min(torch.finfo(magnitude.dtype).tiny)


class Scores(NamedTuple):
    """Magnitudes of groups of one size, for the search of the global threshold.

    Attributes:
        values: One for each group that is here, fp32, any shape.
        groups: How many there are in the whole weight.
        weights: How many weights go with each.
    """

    values: Tensor
    groups: int
    weights: int


@torch.no_grad()
def scores(weight: Tensor, shape: Sequence[int], grouping: Grouping) -> list[Scores]:
    """The magnitude of every group that can go, each once.

    Args:
        weight: The part of it that is here; its groups are not cut.
        shape: Of the whole weight.
        grouping: The groups.
    """
    kept, found = grouping.kept, []
    memory = in_memory(weight, grouping)
    if memory is not None and weight.shape == tuple(shape):
        blocks = -(-memory.extent // memory.size)
        rows = weight.numel() // (memory.extent * memory.inner)
        values = torch.empty(rows, blocks, memory.inner, device=weight.device)
        _measure(weight, values, memory, spread=False)
        whole, rest = divmod(memory.extent, memory.size)
        for size, here in ((memory.size, values[:, :whole]), (rest, values[:, whole:])):
            if here.numel() and size > kept:
                found.append(Scores(here, here.numel(), size - kept))
        return found
    by_size = {part.size: part for part in parts(weight.detach().float(), grouping)}
    for part in parts(torch.empty(tuple(shape), device="meta"), grouping):
        gone = part.size - kept
        if gone <= 0:
            continue
        own = by_size.get(part.size)
        if own is None or not own.view.numel():
            values = weight.new_empty(0, dtype=torch.float32)
        elif kept:
            values = _root_mean_square(own, _smallest(own, gone), gone)
        else:
            values = _root_mean_square(own)
        found.append(Scores(values, part.view.numel() // part.size, gone))
    return found


def too_full(weight: Tensor, grouping: Grouping) -> int:
    """How many groups have more weights left than N of M allows.

    Args:
        weight: The whole effective weight.
        grouping: The groups, of N of M.
    """
    found = (
        part.view.count_nonzero(part.dims[0]) > grouping.kept for part in parts(weight, grouping)
    )
    return sum(int(full.sum()) for full in found)


@dataclass(frozen=True)
class Granularity:
    """What is pruned together. Its text is what the command line and files have."""

    @property
    def text(self) -> str:
        """The inverse of :func:`parse`."""
        raise NotImplementedError

    @property
    def consecutive(self) -> int | None:
        """Inputs of a block; ``None`` where there are none."""
        return None

    @property
    def most(self) -> float:
        """The sparsity at which all groups that can go have gone."""
        return 1.0

    def grouping(self, site: Site) -> Grouping | None:
        """The groups of a site; ``None`` where weights are pruned one by one."""
        raise NotImplementedError

    def prunable(self, site: Site) -> int:
        """How many weights of a site can go."""
        grouping = self.grouping(site)
        if grouping is None:
            return site.numel
        found = parts(torch.empty(site.shape, device="meta"), grouping)
        gone = ((part, max(0, part.size - grouping.kept)) for part in found)
        return sum(part.view.numel() // part.size * count for part, count in gone)

    def largest(self, site: Site) -> int:
        """Weights of the largest group of a site."""
        grouping = self.grouping(site)
        if grouping is None:
            return 1
        found = parts(torch.empty(site.shape, device="meta"), grouping)
        return max(part.size for part in found)

    def constants(self, site: Site) -> tuple[Any, ...]:
        """The groups as an operator's arguments; none for single weights."""
        grouping = self.grouping(site)
        return () if grouping is None else (list(grouping.dims), *grouping[1:])


@dataclass(frozen=True)
class Unstructured(Granularity):
    """Single weights."""

    @property
    def text(self) -> str:
        """``unstructured``."""
        return "unstructured"

    def grouping(self, site: Site) -> None:
        """There are no groups."""


@dataclass(frozen=True)
class Block(Granularity):
    """Consecutive input channels at one tap of a convolution, or input features of a product.

    Attributes:
        size: How many, 2 or more. Kernels for quantized models want 4.

    Raises:
        MethodError: For fewer.
    """

    size: int = 4

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 2:
            raise MethodError(f"Block({self.size}): give 2 or more input channels, for example 4")

    @property
    def text(self) -> str:
        """``block:4``."""
        return f"block:{self.size}"

    @property
    def consecutive(self) -> int:
        """``size``."""
        return self.size

    def grouping(self, site: Site) -> Grouping | None:
        """Blocks along the input channels, where there are enough of them."""
        dim = _input_dim(site)
        if dim is None or _extent(site, dim) < self.size:
            return None
        return Grouping((dim,), 0, self.size, site.layout.groups)


@dataclass(frozen=True)
class NM(Granularity):
    """At most ``n`` of ``m`` consecutive input channels or features.

    Attributes:
        n: How many stay, 1 or more.
        m: Of how many, more than ``n``, 32 at most.

    Raises:
        MethodError: For others.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if {type(self.n), type(self.m)} != {int} or not 1 <= self.n < self.m <= 32:
            raise MethodError(f"NM({self.n}, {self.m}): give n of m with 1 <= n < m <= 32")

    @property
    def text(self) -> str:
        """``nm:2:4``."""
        return f"nm:{self.n}:{self.m}"

    @property
    def consecutive(self) -> int:
        """``m``."""
        return self.m

    @property
    def most(self) -> float:
        """``1 − n/m``."""
        return 1 - self.n / self.m

    def grouping(self, site: Site) -> Grouping | None:
        """Groups along the input channels; a weight with ``n`` of them or fewer stays dense.

        So does one whose uses disagree about its output channels.
        """
        dim = _input_dim(site)
        if dim is None:
            return Grouping((0,), self.m, self.m, site.layout.groups)
        return Grouping((dim,), self.n, self.m, site.layout.groups)


@dataclass(frozen=True)
class Channels(Granularity):
    """Whole output channels, which the elimination of dead channels then takes out of the model."""

    @property
    def text(self) -> str:
        """``channels``."""
        return "channels"

    def grouping(self, site: Site) -> Grouping | None:
        """All that one output channel is made from."""
        dims = _input_dims(site)
        return Grouping(dims, 0, 0, site.layout.groups) if dims else None


def parse(text: str) -> Granularity:
    """The granularity that a text names: ``unstructured``, ``block:4``, ``nm:2:4``, ``channels``.

    Raises:
        MethodError: For other texts.
    """
    if text == "unstructured":
        return Unstructured()
    if text == "channels":
        return Channels()
    if match := re.fullmatch(r"block:(\d+)", text):
        return Block(int(match[1]))
    if match := re.fullmatch(r"nm:(\d+):(\d+)", text):
        return NM(int(match[1]), int(match[2]))
    raise MethodError(f"granularity {text!r}: give unstructured, block:4, nm:2:4 or channels")


def granularity_of(value: object) -> Granularity:
    """A granularity from one, or from its text.

    Raises:
        MethodError: For anything else.
    """
    if isinstance(value, str):
        return parse(value)
    if not isinstance(value, Granularity):
        raise MethodError(
            f"granularity={value!r}: give st3fx.Unstructured(), Block(4), NM(2, 4) or Channels()"
        )
    return value


def _view_shape(site: Site) -> tuple[int, ...]:
    groups = site.layout.groups
    first, *others = site.shape
    return (groups, first // groups, *others) if groups > 1 else site.shape


def _input_dims(site: Site) -> tuple[int, ...]:
    """Dimensions of the view that are no output channels; none where uses of a weight disagree."""
    channels = site.layout.channel_dims
    dims = range(len(_view_shape(site)))
    return tuple(dim for dim in dims if dim not in channels) if channels else ()


def _input_dim(site: Site) -> int | None:
    """The dimension of the view along which input channels lie one after another."""
    dims = _input_dims(site)
    if not dims:
        return None
    return dims[0] if "conv" in site.op else dims[-1]


def _extent(site: Site, dim: int) -> int:
    return _view_shape(site)[dim]
