"""What rules give back: MACs of a product, or operations of anything else."""

from __future__ import annotations

from dataclasses import dataclass

from st3fx.flops.operand import Constant


@dataclass(frozen=True)
class Channels:
    """Channels of a weight, and how many of them have no nonzero."""

    inputs: int
    outputs: int
    dead_inputs: int = 0
    dead_outputs: int = 0


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
