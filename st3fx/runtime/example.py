"""The sizes of the example, noted in a file whose image sizes are free."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

KEY = "st3fx.example"
"""Of the model's metadata."""

Shape = tuple[int, ...]


def example_text(shapes: Sequence[Shape]) -> str:
    """``1x3x224x224, 1x8``: sizes of all inputs in their order."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def example_shapes(model: onnx.ModelProto, batch: int = 1) -> tuple[Shape, ...]:
    """The sizes that a file notes, with this batch where it is free; nothing where it notes none.

    Args:
        model: The file, with or without its weights.
        batch: What a free dimension 0 becomes.
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == KEY]
    constants = {item.name for item in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    try:
        parts = ", ".join(texts).split(", ") if texts else []
        shapes = [tuple(map(int, part.split("x"))) if part else () for part in parts]
    except ValueError:
        return ()
    if len(shapes) != len(inputs):
        return ()
    if any(v.type.tensor_type.shape.dim and not s for v, s in zip(inputs, shapes, strict=True)):
        return ()  # a number where the file has dimensions
    free = (v.type.tensor_type.shape.dim[:1] for v in inputs)
    is_free = (any(not dim.HasField("dim_value") for dim in dims) for dims in free)
    return tuple(
        (batch, *shape[1:]) if has else shape
        for shape, has in zip(shapes, is_free, strict=True)
    )  # fmt: skip
