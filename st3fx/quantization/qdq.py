"""A file of 8-bit integers from an fp32 file and ranges, by ONNX Runtime's quantizer.

QuantizeLinear and DequantizeLinear stand around what runs in integers. Activations are uint8 with a
zero point, which lets a range begin at zero: with signed ones ONNX Runtime leaves the convolutions
around residual additions in fp32. Weights are int8, ``w ≈ s·q`` with one scale ``s`` for each
output channel and no zero point, so that a zero stays a zero. Biases are int32 with the scale of
the products, ``s_x · s``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper

from st3fx.errors import QuantizeError, describe
from st3fx.passes.onnx.normal_form import reads
from st3fx.passes.onnx.split_gemm import SplitGemm
from st3fx.passes.onnx.transpose_weights import TransposeWeights
from st3fx.passes.onnx.values import Array
from st3fx.quantization.calibrate import Ranges, quiet
from st3fx.quantization.fake import channel_scales
from st3fx.quantization.layers import (
    DYNAMIC_PRODUCTS,
    FLOAT_OUT,
    PRODUCTS,
    Layer,
    find_layers,
    integer_nodes,
)
from st3fx.runtime.open_model import open_model

SUFFIX = "_quantized"
"""Of the name of a weight's integers: ONNX Runtime's quantizer appends it."""

DEQUANTIZED = "_DequantizeLinear_Output"
"""Of the name of what it has made integers of and back; a bias keeps its own."""


@dataclass(frozen=True)
class Source:
    """An fp32 file as the quantizer takes it.

    Attributes:
        path: The file.
        model: The same, with the shapes of all values.
        layers: Its weights.
    """

    path: Path
    model: onnx.ModelProto
    layers: tuple[Layer, ...]

    @property
    def possible(self) -> tuple[Layer, ...]:
        """The layers that can be in integers."""
        return tuple(layer for layer in self.layers if not layer.reason)

    def operators(self) -> set[str]:
        """Types of the operators that may run in integers."""
        names = set(integer_nodes(self.model.graph, self.possible))
        return {node.op_type for node in self.model.graph.node if node.name in names}


def read_source(path: Path, folder: Path, *, dynamic: bool = False) -> Source:
    """Read an exported file, and write it again as the quantizer takes it.

    Args:
        path: The file.
        folder: Where it and what else the quantizer needs is written.
        dynamic: Whether activations are rounded call by call.

    Raises:
        QuantizeError: When it is damaged, or no product of it can be in integers.
    """
    from onnxruntime.quantization.quant_utils import (  # noqa: PLC0415 (takes a while)
        load_model_with_shape_infer,
    )

    open_model(path, QuantizeError, weights=False, compared=True)
    model = ir.load(path)
    if dynamic:
        SplitGemm()(model)
    turned = TransposeWeights().applied_to(model)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"node_{index}"
    # In two files: a shape inference reads the one that has no weights.
    written = folder / "source.onnx"
    ir.save(model, written, external_data="source.onnx.data")
    with quiet():
        proto = load_model_with_shape_infer(written)
    layers = find_layers(proto.graph, turned.names, DYNAMIC_PRODUCTS if dynamic else PRODUCTS)
    source = Source(written, proto, layers)
    if not source.possible:
        reasons = sorted({layer.reason for layer in layers}) or ["it has no weight"]
        raise QuantizeError(f"no layer can be in integers: {'; '.join(reasons)}")
    return source


def quantized(
    source: Source, ranges: Ranges, kept: Collection[str], weight_range: str
) -> onnx.ModelProto:
    """The file of integers.

    Args:
        source: The fp32 file.
        ranges: Of its activations.
        kept: Names of the layers that stay in fp32.
        weight_range: ``safe`` or ``full``: see :func:`weight_scales`.

    Raises:
        QuantizeError: When the quantizer fails.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType  # noqa: PLC0415 (takes a while)

    layers = [layer for layer in source.possible if layer.name not in kept]
    model = copy.deepcopy(source.model)
    if layers:
        nodes = integer_nodes(model.graph, layers)
        arguments: dict[str, Any] = {
            "per_channel": True,
            "reduce_range": False,  # weights come with their scales, and activations have 8 bits
            "weight_qType": QuantType.QInt8,
            "activation_qType": QuantType.QUInt8,
            "tensors_range": _tensors_data(ranges),
            "nodes_to_quantize": nodes,
            "nodes_to_exclude": [],
            "op_types_to_quantize": sorted(source.operators()),
            "extra_options": {
                "OpTypesToExcludeOutputQuantization": list(FLOAT_OUT),
                "TensorQuantOverrides": overrides(model.graph, layers, weight_range),
            },
        }
        with quiet():
            try:
                quantizer = QDQQuantizer(model, **arguments)
                quantizer.quantize_model()
                quantizer.model.topological_sort()
                model = quantizer.model.model
            except Exception as error:
                raise QuantizeError(f"ONNX Runtime's quantizer fails: {describe(error)}") from error
    protect_floats(model.graph)
    forget_unread(model.graph)
    forget_notes(model)
    return model


def protect_floats(graph: onnx.GraphProto) -> None:
    """Have the layers that stay in fp32 computed in fp32.

    What they read is rounded only where a layer in integers has made it. And where the input of a
    product comes from integers and its output goes into such, ONNX Runtime rounds a constant fp32
    weight itself when it loads the file, with one scale for all of it (``WeightBiasQuantization``).
    It leaves those be whose input has a scale for each channel: each such product gets a
    DequantizeLinear of its own, with the one scale as often as there are channels, which computes
    the same numbers.
    """
    constants = {item.name: item for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in list(graph.node):
        weight = constants.get(node.input[1]) if len(node.input) > 1 else None
        maker = makers.get(node.input[0]) if node.input else None
        if node.op_type not in _WEIGHTED or weight is None or maker is None:
            continue
        if maker.op_type != "DequantizeLinear" or constants[maker.input[1]].dims:
            continue
        rounded = makers[maker.input[0]].input[0]
        if not _from_integers(makers.get(rounded)):
            node.input[0] = rounded
        elif node.op_type != "MatMul":
            _own_scales(graph, node, maker, _inputs(node, weight), constants)


_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _from_integers(maker: onnx.NodeProto | None) -> bool:
    """Whether a node runs in integers: the quantizer has its operands dequantized."""
    return maker is not None and any(name.endswith(DEQUANTIZED) for name in maker.input)


def _own_scales(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    maker: onnx.NodeProto,
    channels: int,
    constants: Mapping[str, onnx.TensorProto],
) -> None:
    """Give a node a DequantizeLinear with a scale for each channel."""
    own = f"{node.name}_channels"
    inputs = [maker.input[0]]
    for name in maker.input[1:]:
        value = numpy_helper.to_array(constants[name])
        inputs.append(f"{own}{name.removeprefix(maker.output[0].removesuffix(DEQUANTIZED))}")
        repeated = np.full(channels, value, value.dtype)
        graph.initializer.append(numpy_helper.from_array(repeated, inputs[-1]))
    graph.node.insert(
        list(graph.node).index(node),
        onnx.helper.make_node("DequantizeLinear", inputs, [own], own, axis=1),
    )
    node.input[0] = own


def _inputs(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """Input channels of a product with a constant weight."""
    numbers = {item.name: int(item.i) for item in node.attribute}
    dims: Sequence[int] = weight.dims
    if node.op_type == "Conv":
        return dims[1] * numbers.get("group", 1)
    if node.op_type == "Gemm" and numbers.get("transB", 0):
        return dims[1]
    return dims[0]


def weight_scales(weight: Array, axis: int, weight_range: str) -> Array:
    """One scale for each output channel.

    With ``full`` the largest magnitude of a channel is 127. With ``safe`` it is so, too, unless two
    neighbours would overflow: x86 without VNNI multiplies (``vpmaddubsw``) two activations of at
    most 255 by two weights and adds both products in 16 bits, where ``255·(q₁ + q₂)`` must stay
    within ±32 767. So of the two neighbours of a pair those of one sign add up to 128 at most.
    ONNX Runtime's neighbours are input channels 0 and 1, 2 and 3, … at one tap, and run on from one
    tap to the next.

    A channel of zeros gets the mean scale of the others: ONNX Runtime's quantizer would give it 1,
    and its bias, whose step is the scale of the products, would be rounded to whole numbers of the
    input's scale. So does one whose scale would be denormal.

    Args:
        weight: As the product reads it.
        axis: Dimension of its output channels.
        weight_range: ``safe`` or ``full``.
    """
    scales: Array = channel_scales(torch.from_numpy(weight.copy()), axis, weight_range).numpy()
    return scales


def overrides(
    graph: onnx.GraphProto, layers: Sequence[Layer], weight_range: str
) -> dict[str, list[dict[str, Any]]]:
    """The scales of weights as ONNX Runtime's quantizers take them."""
    constants = {item.name: item for item in graph.initializer}
    return {
        layer.constant: [
            {"axis": layer.axis, "scale": float(scale), "zero_point": 0}
            for scale in weight_scales(
                numpy_helper.to_array(constants[layer.constant]), layer.axis, weight_range
            )
        ]
        for layer in layers
    }


def _tensors_data(ranges: Ranges) -> Any:
    """The ranges as the quantizer takes them, which changes them."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData  # noqa: PLC0415

    pairs = {
        name: (
            np.array(ranges.lowest[name], np.float32),
            np.array(ranges.highest[name], np.float32),
        )
        for name in ranges.lowest
    }
    return TensorsData(CalibrationMethod.MinMax, pairs)


def forget_unread(graph: onnx.GraphProto) -> None:
    """Take away nodes and constants that nothing reads any more."""
    while True:
        read = {value.name for value in graph.output}
        read |= {name for node in graph.node for name in reads(node)}
        left = [node for node in graph.node if not read.intersection(node.output)]
        for node in left:
            graph.node.remove(node)
        if not left:
            break
    for item in [item for item in graph.initializer if item.name not in read]:
        graph.initializer.remove(item)


def forget_notes(model: onnx.ModelProto) -> None:
    """Take away shapes between the nodes and what the quantizer notes about its own work."""
    del model.graph.value_info[:]
    del model.metadata_props[:]
