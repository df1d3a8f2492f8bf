"""A file whose linear layers round their inputs call by call, by ONNX Runtime's quantizer.

``DynamicQuantizeLinear`` finds scale and zero point of a whole activation when it runs, so that no
range is taken beforehand and none can be too narrow: what transformers are usually given, whose
activations have a few very large values. What follows is ``MatMulInteger`` and a product by both
scales. Weights are those of ``st3fx.quantization.qdq``: int8 with a scale for each output channel.
Everything else stays in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import onnx

from st3fx.errors import QuantizeError, describe
from st3fx.quantization.calibrate import quiet
from st3fx.quantization.qdq import Source, forget_notes, forget_unread, overrides


def dynamically(source: Source, kept: Collection[str], weight_range: str) -> onnx.ModelProto:
    """The file of integers.

    Args:
        source: The fp32 file, read with ``dynamic``.
        kept: Names of the layers that stay in fp32.
        weight_range: ``safe`` or ``full``: see ``st3fx.quantization.qdq.weight_scales``.

    Raises:
        QuantizeError: When the quantizer fails.
    """
    from onnxruntime.quantization import QuantizationMode, QuantType  # noqa: PLC0415 (a while)
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer  # noqa: PLC0415

    layers = [layer for layer in source.possible if layer.name not in kept]
    model = copy.deepcopy(source.model)
    if layers:
        with quiet():
            try:
                quantizer = ONNXQuantizer(
                    model,
                    per_channel=True,
                    reduce_range=False,  # weights come with their scales
                    mode=QuantizationMode.IntegerOps,
                    static=False,
                    weight_qType=QuantType.QInt8,
                    activation_qType=QuantType.QUInt8,
                    tensors_range=None,
                    nodes_to_quantize=[name for layer in layers for name in layer.nodes],
                    nodes_to_exclude=[],
                    op_types_to_quantize=sorted({layer.op for layer in layers}),
                    extra_options={
                        "MatMulConstBOnly": True,
                        "TensorQuantOverrides": overrides(model.graph, layers, weight_range),
                    },
                )
                quantizer.quantize_model()
                quantizer.model.topological_sort()
                model = quantizer.model.model
            except Exception as error:
                raise QuantizeError(f"ONNX Runtime's quantizer fails: {describe(error)}") from error
    forget_unread(model.graph)
    forget_notes(model)
    return model
