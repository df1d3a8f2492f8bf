"""What a node of an ONNX graph can become: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from st3fx.passes.onnx.values import Array, Image
from st3fx.runtime.costs import ConvWork, LinearWork

Attributes = Mapping[str, int | float | str | tuple[int, ...]]


@dataclass(frozen=True)
class Weight:
    """A constant weight as a matrix.

    Attributes:
        name: Of the initializer.
        rows: ``[rows, columns]``, a row for each output channel or feature.
        shape: Of the weight in the model.
    """

    name: str
    rows: Array
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Role:
    """What a node can become.

    Attributes:
        node: The node.
        op: Our operator; empty for an elementwise operator of ONNX, which computes in any layout.
        images: Inputs whose layout is free.
        output: The output, where its layout is free.
        tied: Whether ``images`` and ``output`` have one layout.
        others: Further inputs, before the constants.
        weight: Of a sparse operator.
        constants: Name of the initializer -> values, in the order of inputs; ``None``: left out.
        attributes: Of our operator.
        extra: Nodes beside ``node`` that it replaces.
        work: Of a sparse operator: what the cost model has to know.
        flatten: Whether ONNX's node drops the dimensions of size 1 that ours keeps.
    """

    node: ir.Node
    op: str
    images: tuple[ir.Value, ...] = ()
    output: ir.Value | None = None
    tied: bool = False
    others: tuple[ir.Value, ...] = ()
    weight: Weight | None = None
    constants: Mapping[str, Array | None] = field(default_factory=dict)
    attributes: Attributes = field(default_factory=dict)
    extra: tuple[ir.Node, ...] = ()
    work: ConvWork | LinearWork | None = None
    flatten: bool = False

    @property
    def is_sparse(self) -> bool:
        """Whether it is a choice between a dense and a sparse kernel."""
        return self.work is not None

    @property
    def result(self) -> ir.Value:
        """What the nodes that it replaces give."""
        return (self.extra[-1] if self.extra else self.node).outputs[0]


@dataclass(frozen=True)
class Refused:
    """Why a layer with a weight has no sparse form."""

    node: ir.Node
    weight: str
    shape: tuple[int, ...]
    reason: str


def is_small(picture: Image) -> bool:
    """Whether tiles would be mostly padding: such images stay as they are."""
    return picture.positions < 16
