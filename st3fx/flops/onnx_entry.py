"""What a walk through an ONNX graph notes of a node, to be added up later."""

from __future__ import annotations

from dataclasses import dataclass

from st3fx.flops.collect import Collector
from st3fx.flops.counted import Counted
from st3fx.flops.operand import Operand


@dataclass(frozen=True)
class Entry:
    """One node, or something that cannot be counted.

    Attributes:
        counted: What its rule gave.
        inputs: What it reads.
        outputs: What it writes.
        module: Where the model has it.
        missing: Its name, where it has no rule or its shapes are not known.
        times: How often it runs.
    """

    counted: tuple[Counted, ...] = ()
    inputs: tuple[Operand, ...] = ()
    outputs: tuple[Operand, ...] = ()
    module: str = ""
    missing: str = ""
    times: int = 1

    def add(self, collector: Collector) -> None:
        """Add it up."""
        if self.missing:
            collector.miss(self.missing, self.times)
        else:
            collector.add(self.counted, self.inputs, self.outputs, self.module, self.times)
