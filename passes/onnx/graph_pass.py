"""What all passes over exported graphs share: they say what they changed, and why not the rest."""

from __future__ import annotations

import abc
import contextlib
import logging
from collections.abc import Iterator
from typing import Self

import onnx_ir as ir


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Around onnx_ir: what it would log of a file is in the error, or is none of the user's."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


class GraphPass(ir.passes.InPlacePass):
    """A pass that changes a graph in place and notes what became of it; each is used once.

    What it cannot leave as it is and cannot change either it raises an error for, which names it.

    Attributes:
        changed: Names of the nodes, weights or inputs that are not as they were.
        kept: Name of a node or weight that the pass is for -> why it is as it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed: list[str] = []
        self.kept: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass, as onnx_ir does."""
        return ir.passes.PassResult(model, modified=self.apply(model))

    def applied_to(self, model: ir.Model) -> Self:
        """Run the pass, and give it back with what it noted."""
        self(model)
        return self

    @abc.abstractmethod
    def apply(self, model: ir.Model) -> bool:
        """Change a graph in place, note what became of it, and say whether anything did."""
