"""Checks that a file of integers has the zeros of the fp32 file, and computes what it does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from st3fx.errors import QuantizeError
from st3fx.passes.onnx.values import Array
from st3fx.quantization.layers import Layer
from st3fx.quantization.measure import Comparison
from st3fx.quantization.qdq import SUFFIX, Source

LEAST_SQNR = 3.0
"""Decibels of signal over noise at an output below which a file is wrong: at 3 the error has half
the power of the output itself. What can be used lies at 15 and above."""


@dataclass(frozen=True)
class Rounding:
    """What became of one weight.

    Attributes:
        zeros: Integers that are zero.
        rounded: Those among them that were no zero.
    """

    zeros: int
    rounded: int


def check_weights(
    model: onnx.ModelProto, source: Source, kept: Collection[str]
) -> Mapping[str, Rounding]:
    """Compare the integers with the weights.

    Args:
        model: The file of integers.
        source: The fp32 file.
        kept: Names of the layers that stay in fp32.

    Returns:
        Name of each layer in integers -> what became of it.

    Raises:
        QuantizeError: When a layer is not in integers, or a zero of it is none.
    """
    constants = {item.name: item for item in source.model.graph.initializer}
    written = {item.name: item for item in model.graph.initializer}
    return {
        layer.name: _compare(
            layer, numpy_helper.to_array(constants[layer.constant]), written
        )
        for layer in source.possible if layer.name not in kept
    }  # fmt: skip


def _compare(layer: Layer, weight: Array, written: Mapping[str, onnx.TensorProto]) -> Rounding:
    where = f"{layer.name} {layer.shape}"
    found = written.get(f"{layer.constant}{SUFFIX}")
    if found is None or layer.constant in written:
        raise QuantizeError(f"{where} is not in integers: the quantizer left it out")
    integers = numpy_helper.to_array(found)
    if integers.dtype != np.int8 or integers.shape != weight.shape:
        raise QuantizeError(f"{where} became {integers.dtype} {integers.shape}, and not int8")
    lost = int(np.count_nonzero(integers[weight == 0]))
    if lost:
        raise QuantizeError(f"{where} has lost {lost:,} of its {layer.zeros:,} zeros")
    zeros = integers.size - int(np.count_nonzero(integers))
    return Rounding(zeros, zeros - layer.zeros)


def check_outputs(comparison: Comparison) -> None:
    """Refuse a file whose outputs are not those of the fp32 file.

    Raises:
        QuantizeError: When one is not finite, or more noise than signal.
    """
    name, sqnr = comparison.worst
    if not comparison.finite:
        raise QuantizeError(f"output {name} of the file of integers is not finite")
    if sqnr is not None and sqnr < LEAST_SQNR:
        raise QuantizeError(
            f"output {name} is far from fp32, {sqnr:.1f} dB of signal over noise: leave layers in "
            "fp32 (--keep-fp32), try another --calibration, or give data like the model's"
        )
