"""Names of our operators.

None of them is a name of ONNX or ONNX Runtime: there are tools that look at an operator's name and
not at its domain, and take one of ours for one of theirs.

The sizes of the example, noted in a file whose image sizes are free.

Names of files with sparse operators, and of the plain ones beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import onnx

SUFFIX = ".sparse.onnx"
"""Of a file with sparse operators where no name was asked for."""

_PLAIN = ".plain.onnx"


def plain_path(path: Path) -> Path:
    """Where the plain form of a file with sparse operators is written, beside it.

    ``model.onnx`` beside ``model.sparse.onnx``; beside any other name, which is the one that was
    asked for, ``NAME.plain.onnx``.
    """
    if path.name.endswith(SUFFIX):
        return path.with_name(path.name.removesuffix(SUFFIX) + ".onnx")
    return path.with_name(path.name.removesuffix(".onnx") + _PLAIN)


SPARSE_CONV: Final = "SparseConv"
DEPTHWISE_CONV: Final = "DepthwiseConv"
SPARSE_LINEAR: Final = "SparseLinear"
MAX_POOL: Final = "ImageMaxPool"
AVERAGE_POOL: Final = "ImageAveragePool"
GLOBAL_AVERAGE_POOL: Final = "ImageGlobalAveragePool"
ADD: Final = "ImageAdd"
CHANNEL_SCALE: Final = "ChannelScale"
CONCAT: Final = "ImageConcat"
LAYOUT: Final = "Layout"

QUANT_CONV: Final = "QuantConv"
QUANT_DEPTHWISE_CONV: Final = "QuantDepthwiseConv"
QUANT_LINEAR: Final = "QuantLinear"
QUANT_ADD: Final = "QuantAdd"
QUANT_LOOKUP: Final = "QuantLookup"
QUANT_MAX_POOL: Final = "QuantMaxPool"
QUANT_AVERAGE_POOL: Final = "QuantAveragePool"
QUANT_GLOBAL_AVERAGE_POOL: Final = "QuantGlobalAveragePool"
QUANT_SCALE: Final = "QuantScale"
QUANT_CHANNELS: Final = "QuantChannels"
QUANTIZE_IMAGE: Final = "QuantizeImage"
DEQUANTIZE_IMAGE: Final = "DequantizeImage"
QUANT_LAYOUT: Final = "QuantLayout"

OPERATORS: Final = (
    SPARSE_CONV, DEPTHWISE_CONV, SPARSE_LINEAR, MAX_POOL, AVERAGE_POOL, GLOBAL_AVERAGE_POOL, ADD,
    CHANNEL_SCALE, CONCAT, LAYOUT,
)  # fmt: skip
"""Of float32."""

QUANT_OPERATORS: Final = (
    QUANT_CONV, QUANT_DEPTHWISE_CONV, QUANT_LINEAR, QUANT_ADD, QUANT_LOOKUP, QUANT_MAX_POOL,
    QUANT_AVERAGE_POOL, QUANT_GLOBAL_AVERAGE_POOL, QUANT_SCALE, QUANT_CHANNELS, QUANTIZE_IMAGE,
    DEQUANTIZE_IMAGE, QUANT_LAYOUT,
)  # fmt: skip
"""Of quantized numbers."""

FORMER: Final = {
    "MaxPool": MAX_POOL,
    "AveragePool": AVERAGE_POOL,
    "GlobalAveragePool": GLOBAL_AVERAGE_POOL,
    "Add": ADD,
    "Concat": CONCAT,
}
"""Name in files of earlier versions -> name now. The library knows both."""


def current_name(name: str) -> str:
    """The name that an operator of our domain has now."""
    return FORMER.get(name, name)


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
