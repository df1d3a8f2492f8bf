"""The result of a count: layers, other operations, totals, memory.

A report as CSV.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Convention = Literal["exact", "st3", "str"]


@dataclass(frozen=True)
class LayerFlops:
    """What one weight, or the products of activations in one module, cost in one call.

    Attributes:
        name: Full name of the weight; ``module:op`` where there is none.
        op: ``conv2d``, ``linear``, ``attention``, ...; several are joined by ``+``.
        shape: Of the weight; empty where there is none.
        parameters: Scalars of the weight; 0 where there is none or it is no parameter.
        nonzeros: How many of them are not zero.
        dense_macs: MACs if no weight were zero.
        sparse_macs: MACs of the weights that are not zero.
        calls: Operations, over which the MACs are sums.
        inputs: Input channels (or features) of the weight; 0 where there is none.
        outputs: Output channels of the weight.
        dead_inputs: Input channels that no filter reads.
        dead_outputs: Output channels whose filter is all zero.
        weight_bytes: Reads of the weight, once a call.
        sparse_weight_bytes: The same with a bit for each scalar and the nonzeros' values.
        activation_bytes: Inputs read and outputs written.
        block_fill: How many blocks of consecutive inputs have 0, 1, 2, ... nonzeros; empty where
            none were counted.
        block_zeros: Zeros in the blocks that have a nonzero.
    """

    name: str
    op: str
    shape: tuple[int, ...] = ()
    parameters: int = 0
    nonzeros: int = 0
    dense_macs: int = 0
    sparse_macs: int = 0
    calls: int = 0
    inputs: int = 0
    outputs: int = 0
    dead_inputs: int = 0
    dead_outputs: int = 0
    weight_bytes: int = 0
    sparse_weight_bytes: int = 0
    activation_bytes: int = 0
    block_fill: tuple[int, ...] = ()
    block_zeros: int = 0

    @property
    def sparsity(self) -> float:
        """Share of the weight that is zero."""
        return 1 - self.nonzeros / self.parameters if self.parameters else 0.0

    @property
    def blocks(self) -> int:
        """All blocks."""
        return sum(self.block_fill)

    @property
    def blocks_left(self) -> int:
        """Blocks that have a nonzero."""
        return sum(self.block_fill[1:])

    @property
    def fullest_block(self) -> int:
        """Nonzeros of the block that has the most: the N of N of M."""
        return max((left for left, blocks in enumerate(self.block_fill) if blocks), default=0)


@dataclass(frozen=True)
class OtherFlops:
    """Operations of one kind that are no MACs.

    Attributes:
        op: ``relu``, ``batch_norm``, ...
        calls: How many operations.
        flops: Additions, multiplications, comparisons and functions in them.
        activation_bytes: Inputs read and outputs written.
    """

    op: str
    calls: int = 0
    flops: int = 0
    activation_bytes: int = 0


@dataclass(frozen=True)
class FlopsReport:
    """What one call of a model costs.

    Attributes:
        model: Class of the model, or the file's name.
        level: The graph that was counted: ``aten`` or ``onnx``.
        convention: ``exact``, ``st3`` or ``str``.
        inputs: Shapes of the inputs.
        by_layer: Rows by name, in the order of execution.
        by_op: Operations that are no MACs, by their kind.
        unknown: Operators without a rule -> calls. They are in no total.
        parameters: Scalars in all parameters of the model, tied ones once.
        sites: The weights that a conversion made sparse, over which ``weight_sparsity`` is taken;
            ``None`` for all weights that multiply.
        block: Inputs that were counted as a block; ``None`` where none were.
        has_values: Whether the weights have values; else none of them counts as zero.
    """

    model: str
    level: str
    convention: str
    inputs: tuple[tuple[int, ...], ...]
    by_layer: dict[str, LayerFlops] = field(default_factory=dict)
    by_op: dict[str, OtherFlops] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    sites: frozenset[str] | None = None
    block: int | None = None
    has_values: bool = True

    @property
    def dense_macs(self) -> int:
        """MACs if no weight were zero."""
        return sum(layer.dense_macs for layer in self.by_layer.values())

    @property
    def sparse_macs(self) -> int:
        """MACs of the weights that are not zero, and of everything without weights."""
        return sum(layer.sparse_macs for layer in self.by_layer.values())

    @property
    def elementwise_flops(self) -> int:
        """Operations that are no MACs."""
        return sum(op.flops for op in self.by_op.values())

    @property
    def weights(self) -> int:
        """Scalars of the sites, or of all weights that multiply."""
        return sum(layer.parameters for layer in self._weight_layers())

    @property
    def weight_nonzeros(self) -> int:
        """How many of ``weights`` are not zero."""
        return sum(layer.nonzeros for layer in self._weight_layers())

    @property
    def weight_sparsity(self) -> float:
        """Share of zeros in ``weights``."""
        return 1 - self.weight_nonzeros / self.weights if self.weights else 0.0

    @property
    def parameter_sparsity(self) -> float:
        """The zeros in ``weights`` as a share of all parameters.

        A zero in a bias or in a normalisation is no pruned weight and does not count.
        """
        return (self.weights - self.weight_nonzeros) / self.parameters if self.parameters else 0.0

    @property
    def block_fill(self) -> tuple[int, ...]:
        """Of ``weights``: how many blocks have 0, 1, 2, ... nonzeros."""
        return tuple(map(sum, zip(*(r.block_fill for r in self._block_layers()), strict=True)))

    @property
    def blocks(self) -> int:
        """Of ``weights``: all blocks."""
        return sum(self.block_fill)

    @property
    def blocks_left(self) -> int:
        """Those that have a nonzero."""
        return sum(self.block_fill[1:])

    @property
    def block_zeros(self) -> int:
        """Zeros in these."""
        return sum(layer.block_zeros for layer in self._block_layers())

    @property
    def fullest_block(self) -> int:
        """Nonzeros of the block that has the most."""
        return max((layer.fullest_block for layer in self._block_layers()), default=0)

    @property
    def block_share(self) -> float:
        """Share of ``weights`` that kernels multiply which take blocks whole."""
        return (self.weight_nonzeros + self.block_zeros) / self.weights if self.weights else 0.0

    @property
    def weight_bytes(self) -> int:
        """Reads of dense weights."""
        return sum(layer.weight_bytes for layer in self.by_layer.values())

    @property
    def sparse_weight_bytes(self) -> int:
        """Reads of weights as bit masks and values, each where that is smaller."""
        rows = self.by_layer.values()
        return sum(min(row.weight_bytes, row.sparse_weight_bytes) for row in rows)

    @property
    def activation_bytes(self) -> int:
        """Reads and writes of activations if no two operations are fused."""
        layers = sum(layer.activation_bytes for layer in self.by_layer.values())
        return layers + sum(op.activation_bytes for op in self.by_op.values())

    @property
    def mac_bound(self) -> float:
        """How many times faster it can get at most if time were proportional to MACs.

        Amdahl's law: what has no zeros keeps its cost. Infinite where no MAC is left.
        """
        return _ratio(self.dense_macs, self.sparse_macs)

    @property
    def flop_bound(self) -> float:
        """The same if time were proportional to all operations, a MAC being two."""
        other = self.elementwise_flops
        return _ratio(2 * self.dense_macs + other, 2 * self.sparse_macs + other)

    def to_dict(self) -> dict[str, Any]:
        """This report as JSON values, totals first."""
        data = dataclasses.asdict(self)
        layers, ops, sites = data.pop("by_layer"), data.pop("by_op"), data.pop("sites")
        counted = () if self.block is None else BLOCK_TOTALS
        if self.has_values:
            del data["has_values"]
        if self.block is None:
            del data["block"]
        for name, row in layers.items():
            if self.block is None:
                del row["block_fill"], row["block_zeros"]
            else:
                row |= {of: getattr(self.by_layer[name], of) for of in BLOCKS}
            row["sparsity"] = self.by_layer[name].sparsity
            row["share"] = _share(row["sparse_macs"], self.sparse_macs)
        totals = {name: _finite(getattr(self, name)) for name in (*TOTALS, *counted)}
        over = "layers" if sites is None else "sites"
        rows = {"by_layer": list(layers.values()), "by_op": list(ops.values())}
        return {**data, **totals, "weights_over": over, **rows}

    def _weight_layers(self) -> list[LayerFlops]:
        rows = [row for row in self.by_layer.values() if row.parameters and row.dense_macs]
        return [row for row in rows if self.sites is None or row.name in self.sites]

    def _block_layers(self) -> list[LayerFlops]:
        return [layer for layer in self._weight_layers() if layer.block_fill]


TOTALS = (
    "dense_macs", "sparse_macs", "elementwise_flops", "weights", "weight_nonzeros",
    "weight_sparsity", "parameter_sparsity", "weight_bytes", "sparse_weight_bytes",
    "activation_bytes", "mac_bound", "flop_bound",
)  # fmt: skip
"""Properties of a report that go into JSON."""

BLOCKS = ("blocks", "blocks_left", "fullest_block")
"""Properties of a layer that do where blocks were counted."""

BLOCK_TOTALS = ("block_fill", "block_zeros", *BLOCKS, "block_share")
"""Those of a report."""


def _ratio(dense: int, sparse: int) -> float:
    return dense / sparse if sparse else (float("inf") if dense else 1.0)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if value == float("inf") else value


def to_csv(rows: Iterable[LayerFlops], sparse_macs: int) -> str:
    """One line per layer under a header.

    Args:
        rows: The layers, in the order to write them.
        sparse_macs: Of the whole model: what shares are taken of.
    """
    text = io.StringIO()
    rows = list(rows)
    names = [field.name for field in dataclasses.fields(LayerFlops) if field.name != "block_fill"]
    if any(row.block_fill for row in rows):
        names += BLOCKS
    else:
        names.remove("block_zeros")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "sparsity", "share"])
    for row in rows:
        values = {name: getattr(row, name) for name in names}
        values["shape"] = "x".join(map(str, row.shape))
        share = row.sparse_macs / sparse_macs if sparse_macs else 0.0
        writer.writerow([*values.values(), row.sparsity, share])
    return text.getvalue()
