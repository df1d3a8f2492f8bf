"""Makes the zeros of weights +0.0: a product with a mask leaves -0.0 in their place."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir


def positive_zeros(model: ir.Model, parameters: Collection[str]) -> None:
    """Take the sign off every zero of the named initializers, in place.

    Args:
        model: The graph.
        parameters: Names. Other constants stay as they are: what divides by one may tell -0.0.
    """
    for name in parameters:
        value = model.graph.initializers.get(name)
        tensor = None if value is None else value.const_value
        if value is None or tensor is None or not tensor.dtype.is_floating_point():
            continue
        array = tensor.numpy()
        zero = array == 0
        if (zero & np.signbit(array)).any():
            value.const_value = ir.tensor(
                np.where(zero, array.dtype.type(0), array), dtype=tensor.dtype, name=name
            )
