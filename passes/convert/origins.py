"""Where tensors come from: the parameters that they are made of, or an activation.

An origin belongs to memory, not to a Python object: a ``.data`` of a tensor, or a view of it, is a
new object over the same values.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from st3fx.passes.convert.observation import Multiplication
from st3fx.provenance import Marks, storage_of


@dataclass
class Event:
    """One thing that an operator did with a parameter.

    Attributes:
        parameter: Full name.
        module: Full name of the module whose own forward issued the operator.
        use: What mixed it with activations, in words; ``None`` for a multiplication.
        item: The multiplication, ``None`` for another use.
        macs: Of the multiplication, in train mode.
        void: Whether it has turned out to be a part of the computation of a weight.
    """

    parameter: str
    module: str
    use: str | None = None
    item: Multiplication | None = None
    macs: int = 0
    void: bool = False


@dataclass(eq=False)
class Product:
    """A product of parameters alone, and what it was taken for: a layer on a learned input.

    If its result is the weight of another product (``W + B @ A``), it is a part of a computation.

    Attributes:
        module: Full name of the module whose own forward issued it.
        events: What was noted of its factors.
    """

    module: str
    events: list[Event] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a tensor comes from.

    Attributes:
        parameters: Those that it is made of; none for an activation, or for buffers alone.
        computed: Whether it is more than a view of one parameter.
        base: The parameter, or the first computed tensor, whose dimensions layouts are about.
        products: Products of parameters in it, whose result has not passed a nonlinearity.
        mixed: Whether a product in it was combined with a parameter of its shape.
        selected: Whether data chose the parts of the parameter that are in it.
    """

    parameters: frozenset[str] = frozenset()
    computed: bool = False
    base: Tensor | None = None
    products: tuple[Product, ...] = ()
    mixed: bool = False
    selected: bool = False


ACTIVATION = Origin()
CONSTANT = Origin(computed=True)
"""The origin of buffers, and of what is computed from them alone."""


class _Place(NamedTuple):
    """Where a parameter lies in a storage, in bytes."""

    begin: int
    end: int
    origin: Origin
    memory: StorageWeakRef


class Origins:
    """The origins of all tensors of one run."""

    def __init__(self, model: nn.Module) -> None:
        """Begin with a model's parameters and buffers."""
        self._memory: dict[int, list[_Place]] = {}
        self._marks = Marks[Origin](of_memory=True)
        for name, parameter in model.named_parameters():
            self.place(name, parameter)
        for buffer in model.buffers():
            self.mark(buffer, CONSTANT)

    def place(self, name: str, parameter: Tensor) -> None:
        """A parameter lies where it lies now."""
        origin = Origin(frozenset([name]), base=parameter)
        self._marks.own(parameter, origin)
        storage = storage_of(parameter)
        if storage is not None:
            place = _Place(*_extent(parameter), origin, StorageWeakRef(storage))
            self._memory.setdefault(storage._cdata, []).append(place)

    def of(self, tensor: Tensor) -> Origin | None:
        """A tensor's origin, ``None`` for what was made of nothing known (noise, positions)."""
        found = self._of_parameter(tensor)
        return self._marks.of(tensor) if found is None else found

    def in_memory(self, tensor: Tensor) -> frozenset[str]:
        """The parameters in whose memory a tensor lies, as a whole or in part."""
        origin = self._of_parameter(tensor)
        return frozenset() if origin is None else origin.parameters

    def _of_parameter(self, tensor: Tensor) -> Origin | None:
        """That of the parameter that a tensor is or lies in; of all, if it spans several."""
        found = self._marks.owned(tensor)
        if found is not None:
            return found
        storage = storage_of(tensor)
        if storage is None or storage._cdata not in self._memory:
            return None
        begin, end = _extent(tensor)
        places = [place for place in self._memory[storage._cdata] if not place.memory.expired()]
        origins = [place.origin for place in places if place.begin < end and begin < place.end]
        if len(origins) < 2:
            return origins[0] if origins else None
        return Origin(frozenset[str]().union(*(o.parameters for o in origins)), computed=True)

    def mark(self, tensor: Tensor, origin: Origin) -> None:
        """Say where a new tensor, or one that was written to, comes from."""
        if origin.parameters and origin.base is None:
            origin = dataclasses.replace(origin, base=tensor)
        storage = storage_of(tensor)
        if storage is None or storage._cdata not in self._memory:
            self._marks.put(tensor, origin)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends in its storage, in bytes."""
    size = tensor.element_size()
    first = int(tensor.storage_offset()) * size
    if not tensor.numel():
        return first, first
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((int(count) - 1) * int(stride) for count, stride in steps)
    return first, first + size * (1 + last)
