"""A tensor that an operator reads, as the operator's rule sees it: channels have to be asked for.

How a rule asks for the channels of an axis says what the operator does with it. An axis that it
does not ask for is needed whole, so that a rule that forgets one loses channels and never a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from torch import Tensor, fx

from st3fx.passes.channels.fact import Coupling, Fact, Ids, Slices


class Role(Enum):
    """What an operator does with an axis of a tensor that it reads."""

    WHOLE = auto()
    """It needs all indices, or their number: none of them can go. So is what no rule speaks of."""
    CARRIED = auto()
    """An axis of a result has its indices: one by one, repeated, in groups, or among others.

    What stands at an index of the result is computed from that index alone.
    """
    CUT = auto()
    """Results have some of the indices; nothing reads the others."""
    SUMMED = auto()
    """It is summed over with a weight: the operator's product says which indices are read."""


class Operand:
    """One tensor among the arguments of an operator.

    Attributes:
        node: That computes it.
        roles: What the rule has said of each axis.
    """

    def __init__(self, node: fx.Node, fact: Fact) -> None:
        self.node = node
        self.roles = [Role.WHOLE] * fact.rank
        self._fact = fact

    @property
    def shape(self) -> tuple[Any, ...]:
        """Numbers, and expressions for sizes that are free."""
        return self._fact.shape

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self._fact.rank

    @property
    def constant(self) -> Slices | None:
        """Where it is constant."""
        return self._fact.constant

    @property
    def tensor(self) -> Tensor | None:
        """Its values, if it is made of parameters and buffers alone."""
        return self._fact.tensor

    def slices(self, axis: int, rank: int, size: int) -> Slices | None:
        """Constants along a dimension of what it is broadcast to; see :meth:`Fact.slices`."""
        return self._fact.slices(axis, rank, size)

    def is_free(self, dim: int) -> bool:
        """Whether some index of an axis might go; asking says nothing of the axis."""
        return self._fact.axes[dim] is not None

    def carried(self, dim: int) -> Ids | None:
        """Channels of an axis that a result has; ``None`` where no index can go."""
        return self._asked(dim, Role.CARRIED)

    def all_carried(self, *but: int) -> list[Ids | None]:
        """Channels of all axes, carried; ``None`` for those in ``but``, which are needed whole."""
        return [None if dim in but else self.carried(dim) for dim in range(self.rank)]

    def cut(self, dim: int) -> Ids | None:
        """Channels of an axis of which results have a part."""
        return self._asked(dim, Role.CUT)

    def summed(self, dim: int) -> Ids | None:
        """Channels of an axis that is summed over with a weight."""
        return self._asked(dim, Role.SUMMED)

    def whole(self, dim: int) -> None:
        """An axis stays as it is after all."""
        self.roles[dim] = Role.WHOLE

    def _asked(self, dim: int, role: Role) -> Ids | None:
        self.roles[dim] = role
        return self._fact.axes[dim]


def join(
    coupling: Coupling, operands: Sequence[Operand], shape: tuple[Any, ...], *, but: int = 0
) -> list[Ids | None]:
    """Channels of what tensors are broadcast to, one with theirs.

    Args:
        coupling: Notes it.
        operands: The tensors. Where one of them has size 1 and is repeated, it is needed whole.
        shape: Of what they are broadcast to.
        but: That many of the last dimensions, of each of them, do not take part.
    """
    axes: list[Ids | None] = []
    rank = len(shape)
    for dim in range(rank - but):
        there = [
            operand.carried(own)
            for operand in operands
            if (own := dim - rank + operand.rank) >= 0
            and (operand.shape[own] != 1 or shape[dim] == 1)
        ]
        ids = there[0] if there else None
        for other in there[1:]:
            ids = coupling.tie(ids, other)
        axes.append(ids)
    return axes
