"""The collector adds up what the rules give, by one convention, into the rows of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from st3fx.flops.flops_report import LayerFlops, OtherFlops
from st3fx.flops.operand import Constant, Counted, Elementwise, Lookup, Operand, Product


class Collector:
    """Rows of a report in the making.

    Args:
        convention: ``exact``, ``st3`` or ``str``.
        block: How many consecutive inputs are counted as a block; ``None`` counts none.
    """

    def __init__(self, convention: str, block: int | None = None) -> None:
        self.convention, self.block = convention, block
        self.layers: dict[str, LayerFlops] = {}
        self.ops: dict[str, OtherFlops] = {}
        self.unknown: dict[str, int] = {}
        self._parts: dict[str, set[int]] = {}

    def add(
        self,
        counted: Iterable[Counted],
        inputs: Sequence[Operand],
        outputs: Sequence[Operand],
        module: str,
        times: int = 1,
    ) -> None:
        """Take in one operation.

        Args:
            counted: What its rule gave.
            inputs: Tensors that it reads.
            outputs: Tensors that it writes, without by-products such as indices.
            module: Full name of the module whose forward issued it.
            times: How often it runs, as in a loop.
        """
        traffic = sum(operand.bytes for operand in outputs)
        traffic += sum(operand.bytes for operand in inputs if operand.constant is None)
        for item in counted:
            if isinstance(item, Product):
                self._product(item, module, traffic, times)
            elif isinstance(item, Lookup):
                self._lookup(item, module, outputs, times)
            elif self.convention == "str" and item.pooled:
                self._pooling(item, module, traffic, times)
            else:
                self._elementwise(item, traffic, times)
            traffic = 0  # of the operation, whose first part has it

    def miss(self, op: str, times: int = 1) -> None:
        """Note an operator without a rule."""
        self.unknown[op] = self.unknown.get(op, 0) + times

    def _lookup(self, item: Lookup, module: str, outputs: Sequence[Operand], times: int) -> None:
        name = _weight_name(item.constant, module)
        size = sum(operand.bytes for operand in outputs)
        self._put(
            self._row(name, "embedding", item.constant),
            times,
            calls=1,
            weight_bytes=size,
            sparse_weight_bytes=size,
            activation_bytes=size,
        )

    def _product(self, item: Product, module: str, traffic: int, times: int) -> None:
        dense, sparse = self._macs(item)
        constant = item.constant
        name = f"{module}:{item.op}" if constant is None else _weight_name(constant, module)
        row = self._row(name, item.op, constant)
        size = packed = 0
        if constant is not None:
            scalars = min(constant.tensor.numel(), constant.weight.tensor.numel())
            nonzeros = min(constant.nonzeros, constant.weight.nonzeros)
            size = scalars * constant.itemsize
            packed = -(-scalars // 8) + nonzeros * constant.itemsize
        self._put(
            self._with_channels(row, item),
            times,
            calls=1,
            dense_macs=dense,
            sparse_macs=sparse,
            weight_bytes=size,
            sparse_weight_bytes=packed,
            activation_bytes=traffic,
        )

    def _macs(self, item: Product) -> tuple[int, int]:
        if self.convention == "exact":
            return item.dense, item.sparse
        if item.constant is None and not item.op.startswith("conv"):
            return 0, 0  # st3 and str have no products of two activations
        return item.dense_padded, item.sparse_padded

    def _pooling(self, item: Elementwise, module: str, traffic: int, times: int) -> None:
        row = self._row(f"{module}:{item.op}", item.op, None)
        macs = item.pooled
        self._put(row, times, calls=1, dense_macs=macs, sparse_macs=macs, activation_bytes=traffic)

    def _elementwise(self, item: Elementwise, traffic: int, times: int) -> None:
        old = self.ops.get(item.op, OtherFlops(item.op))
        self.ops[item.op] = OtherFlops(
            item.op,
            old.calls + times,
            old.flops + times * item.flops,
            old.activation_bytes + times * traffic,
        )

    def _row(self, name: str, op: str, constant: Constant | None) -> LayerFlops:
        """The row of that name, made if there is none yet."""
        row = self.layers.get(name)
        if row is None:
            row = LayerFlops(name, op)
            if constant is not None:
                weight = constant.weight
                numbers = (weight.tensor.numel(), weight.nonzeros) if weight.parameter else (0, 0)
                row = LayerFlops(name, op, weight.shape, *numbers)
        elif op not in row.op.split("+"):
            row = dataclasses.replace(row, op=f"{row.op}+{op}")
        return row

    def _with_channels(self, row: LayerFlops, item: Product) -> LayerFlops:
        """Channels of the weight; those of several slices of one weight are added up."""
        parts = self._parts.setdefault(row.name, set())
        if item.channels is None or id(item.constant) in parts:
            return row
        parts.add(id(item.constant))
        found = item.channels
        row = dataclasses.replace(
            row,
            inputs=row.inputs + found.inputs,
            outputs=row.outputs + found.outputs,
            dead_inputs=row.dead_inputs + found.dead_inputs,
            dead_outputs=row.dead_outputs + found.dead_outputs,
        )
        if self.block is None or item.constant is None or not row.parameters:
            return row
        blocks = item.constant.blocks(found, self.block)
        before = row.block_fill or (0,) * (self.block + 1)
        fill = tuple(a + b for a, b in zip(before, blocks.fill, strict=True))
        return dataclasses.replace(row, block_fill=fill, block_zeros=row.block_zeros + blocks.zeros)

    def _put(self, row: LayerFlops, times: int, **more: int) -> None:
        added = {name: getattr(row, name) + times * value for name, value in more.items()}
        self.layers[row.name] = dataclasses.replace(row, **added)


def _weight_name(constant: Constant, module: str) -> str:
    return constant.weight.name or f"{module}:constant"
