"""One operator of a forward, with its arguments by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st3fx.flops.operand import Operand


@dataclass(frozen=True)
class AtenCall:
    """An operator of the dispatcher.

    Attributes:
        op: ``convolution``: without namespace if it is ``aten``, without the underscore of a
            variant in place.
        arguments: Schema name -> value, with an :class:`Operand` for every tensor.
        outputs: The tensors that it gives back.
    """

    op: str
    arguments: dict[str, Any]
    outputs: tuple[Operand, ...]

    @property
    def out(self) -> Operand:
        """The first tensor that it gives back."""
        return self.outputs[0]

    @property
    def operands(self) -> list[Operand]:
        """All tensors that it is given."""
        found: list[Operand] = []
        for value in self.arguments.values():
            items = value if isinstance(value, list | tuple) else (value,)
            found.extend(item for item in items if isinstance(item, Operand))
        return found

    @property
    def x(self) -> Operand:
        """The first tensor that it is given."""
        return self.operands[0]

    def tensor(self, name: str) -> Operand:
        """A tensor argument."""
        value = self.arguments[name]
        assert isinstance(value, Operand)
        return value

    def get(self, name: str) -> Any:
        """Any argument; ``None`` where it is not given or there is none of that name."""
        return self.arguments.get(name)

    def sizes(self, name: str, dims: int) -> list[int]:
        """A list of sizes, one per dimension, that may be given as a single one."""
        value: Sequence[int] | int = self.arguments[name]
        listed = [value] if isinstance(value, int) else list(value)
        return listed * dims if len(listed) == 1 else listed
