"""Padding as ONNX nodes give it: numbers for each side, or a rule."""

from __future__ import annotations

from collections.abc import Sequence

from st3fx.flops.onnx_call import OnnxCall


def pads_before(call: OnnxCall, kernel: Sequence[int], *, transposed: bool = False) -> list[int]:
    """Zeros before the input in each spatial dimension (transposed: outputs that are cut off).

    Args:
        call: A convolution or pooling.
        kernel: Its window.
        transposed: Whether it is a transposed convolution.
    """
    dims = len(kernel)
    rule = call.attributes.get("auto_pad", "NOTSET")
    if rule == "VALID":
        return [0] * dims
    shaped = transposed and call.attributes.get("output_shape")
    if rule == "NOTSET" and not shaped:
        return list(call.attributes.get("pads") or [0] * dims)[:dims]
    totals = _totals(call, kernel, transposed=transposed)
    # The smaller half comes first. With output_shape and without a rule it is the larger one.
    upper = rule == "SAME_UPPER"
    return [total // 2 if upper else total - total // 2 for total in totals]


def _totals(call: OnnxCall, kernel: Sequence[int], *, transposed: bool) -> list[int]:
    dims = len(kernel)
    sizes, outputs = call.x.shape[-dims:], call.out.shape[-dims:]
    strides, dilations = call.sizes("strides", dims), call.sizes("dilations", dims)
    extra = call.attributes.get("output_padding") or [0] * dims
    totals = []
    for d in range(dims):
        reach = (kernel[d] - 1) * dilations[d] + 1
        if transposed:
            total = strides[d] * (sizes[d] - 1) + extra[d] + reach - outputs[d]
        else:
            total = strides[d] * (outputs[d] - 1) + reach - sizes[d]
        totals.append(max(0, total))
    return totals
