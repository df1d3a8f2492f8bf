"""Count on an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from st3fx.flops import onnx_control
from st3fx.flops.collect import Collector
from st3fx.flops.onnx_file import Shape, Shapes, fix_inputs, read_model
from st3fx.flops.onnx_walk import Walk
from st3fx.runtime.operators import example_shapes


@dataclass(frozen=True)
class GraphCount:
    """What was counted on a graph.

    Attributes:
        rows: The counts.
        inputs: Sizes of the graph's inputs.
        parameters: Scalars in all initializers but integers that are no weights.
    """

    rows: Collector
    inputs: tuple[Shape, ...]
    parameters: int


def count_file(
    path: Path, convention: str, shapes: Shapes | None = None, batch: int | None = None
) -> GraphCount:
    """Count on an ONNX file.

    Args:
        path: The file.
        convention: What counts.
        shapes: Sizes of all inputs in their order, or of some by name.
        batch: What a free size in dimension 0 becomes; 1 by default.

    Raises:
        FlopsError: When the file cannot be read, or a size cannot be known.
    """
    form = read_model(path)
    model = form.model
    types = fix_inputs(model, shapes or example_shapes(model, batch or 1) or None, batch)
    walk = Walk(form, types, onnx_control.take)
    walk.nodes(model.graph.node)
    collector = Collector(convention)
    for entry in walk.entries:
        entry.add(collector)
    inputs = tuple(shape for name in types if (shape := walk.types.shape(name)) is not None)
    return GraphCount(collector, inputs, walk.values.parameters(collector.layers))
