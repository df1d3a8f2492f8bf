"""One node of an ONNX graph, with its attributes and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st3fx.flops.operand import Operand


@dataclass(frozen=True)
class OnnxCall:
    """A node whose shapes are known.

    Attributes:
        op: Operator of the standard domain, ``Conv``.
        attributes: As the node has them; texts decoded.
        inputs: ``None`` for an optional one that is left out.
        outputs: The same.
        integers: Values of inputs that are constant integers, by position.
    """

    op: str
    attributes: dict[str, Any]
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand | None, ...]
    integers: dict[int, tuple[int, ...]]

    @property
    def out(self) -> Operand:
        """The first output."""
        out = self.outputs[0]
        assert out is not None
        return out

    @property
    def x(self) -> Operand:
        """The first input."""
        return self.tensor(0)

    def tensor(self, index: int) -> Operand:
        """An input that is there."""
        operand = self.inputs[index]
        assert operand is not None
        return operand

    def optional(self, index: int) -> Operand | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def sizes(self, name: str, dims: int) -> list[int]:
        """An attribute with one number per spatial dimension, ones if it is left out."""
        return list(self.attributes.get(name) or [1] * dims)

    def axes(self, index: int) -> tuple[int, ...] | None:
        """The axes of a reduction: an attribute, or, since opset 13 or 18, an input."""
        given: Sequence[int] | None = self.attributes.get("axes", self.integers.get(index))
        if given is None and not self.attributes.get("noop_with_empty_axes"):
            return tuple(range(len(self.x.shape)))
        return None if given is None else tuple(given)
