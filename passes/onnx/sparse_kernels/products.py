"""Convolutions and matrix products with a constant weight."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.role import Attributes, Refused, Role, Weight, is_small
from st3fx.passes.onnx.sparse_kernels.values import (
    Array,
    bias,
    constant,
    image,
    is_op,
    matrix,
    only_user,
    rows,
)
from st3fx.runtime import operators
from st3fx.runtime.costs import ConvWork, LinearWork


def convolution(node: ir.Node) -> Role | Refused | None:
    """``Conv`` → ``SparseConv``; ``DepthwiseConv`` where each channel has its own filter."""
    weight = node.inputs[1]
    given, taken = image(node.inputs[0]), image(node.outputs[0])
    found = matrix(weight)
    name, shape = _named(weight)
    if found is None:
        return Refused(node, name, shape, "its weight is no float32 constant")
    array = found[1]
    if array.ndim != 4:
        return Refused(node, name, shape, f"kernels have {array.ndim - 2} dimensions, not 2")
    if given is None or taken is None or node.inputs[0] is None:
        return Refused(node, name, shape, "the size of its input is not known")
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return Refused(node, name, shape, "its padding depends on the size (auto_pad)")
    offset = node.inputs[2] if len(node.inputs) > 2 else None
    offsets = bias(offset, len(array))
    if offset is not None and offsets is None:
        return Refused(node, name, shape, "its bias is computed")
    group = node.attributes.get_int("group", 1)
    moves = window(node, array.shape[2:])
    attributes: Attributes = {"channels": given.channels, **moves}
    if group > 1 and group == given.channels == len(array):
        constants = {name: array, **_constants(offset, offsets)}
        return Role(node, operators.DEPTHWISE_CONV, (node.inputs[0],), node.outputs[0],
                    constants=constants, attributes=attributes)  # fmt: skip
    work = ConvWork(
        rows=len(array),
        columns=array[0].size,
        nonzeros=int(np.count_nonzero(array)),
        taps=array.shape[2] * array.shape[3],
        stride=max(moves["strides"]),
        groups=group,
        in_positions=given.positions,
        out_positions=taken.positions,
    )
    return Role(
        node, operators.SPARSE_CONV,
        images=() if is_small(given) else (node.inputs[0],),
        output=None if is_small(taken) else node.outputs[0],
        others=(node.inputs[0],) if is_small(given) else (),
        weight=Weight(name, array.reshape(len(array), -1), array.shape),
        constants=_constants(offset, offsets),
        attributes={**attributes, "group": group},
        work=work,
    )  # fmt: skip


def window(node: ir.Node, kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Kernel, strides, dilations and pads of a node, with ONNX's defaults."""
    about = node.attributes
    return {
        "kernel_shape": tuple(about.get_ints("kernel_shape", kernel)),
        "strides": tuple(about.get_ints("strides", (1, 1))),
        "dilations": tuple(about.get_ints("dilations", (1, 1))),
        "pads": tuple(about.get_ints("pads", (0, 0, 0, 0))),
    }


def gemm(node: ir.Node) -> Role | Refused | None:
    """``Gemm`` with a constant matrix ``B`` → ``SparseLinear``."""
    name, shape = _named(node.inputs[1])
    found = matrix(node.inputs[1])
    if found is None:
        return None  # a product of two activations
    about = node.attributes
    if about.get_int("transA", 0) or about.get_float("alpha", 1.0) != 1:
        return Refused(node, name, shape, "its input is transposed or scaled")
    array = found[1] if about.get_int("transB", 0) else found[1].T
    offset = node.inputs[2] if len(node.inputs) > 2 else None
    offsets = bias(offset, len(array))
    if offset is not None and (offsets is None or about.get_float("beta", 1.0) != 1):
        return Refused(node, name, shape, "its bias is computed or scaled")
    return _linear(node, node.inputs[0], found[0], array, _constants(offset, offsets))


def product(node: ir.Node) -> Role | Refused | None:
    """``MatMul`` with a constant matrix on either side, with a bias after it → ``SparseLinear``."""
    left, right = (matrix(value) for value in node.inputs)
    if (left is None) == (right is None):
        return None  # two activations, or two constants
    name, array = left or right  # type: ignore[misc]
    inner = node.inputs[1 if left else 0]
    if array.ndim != 2 or inner is None or inner.dtype != ir.DataType.FLOAT:
        return Refused(node, name, array.shape, "it is no single float32 matrix")
    if inner.shape is None or len(inner.shape) < 2:
        return Refused(node, name, array.shape, "the shape of its input is not known")
    if left:
        columns = list(inner.shape)[-1]
        return _linear(node, inner, name, array, {}, side="left",
                       vectors=columns if isinstance(columns, int) else 1)  # fmt: skip
    adding = only_user(node.outputs[0])
    if adding is not None and is_op(adding, "Add"):
        other = next(v for v in adding.inputs if v is not node.outputs[0])
        offsets = bias(other, array.shape[1])
        if offsets is not None and other is not None:
            return _linear(node, inner, name, array.T, _constants(other, offsets),
                           extra=(adding,))  # fmt: skip
    return _linear(node, inner, name, array.T, {})


def _linear(
    node: ir.Node,
    value: ir.Value | None,
    name: str,
    array: Array,
    constants: dict[str, Array | None],
    *,
    side: str = "right",
    vectors: int | None = None,
    extra: tuple[ir.Node, ...] = (),
) -> Role:
    assert value is not None
    work = LinearWork(
        rows=len(array),
        columns=array.shape[1],
        nonzeros=int(np.count_nonzero(array)),
        vectors=rows(value) if vectors is None else vectors,
    )
    return Role(
        node, operators.SPARSE_LINEAR,
        others=(value,),
        weight=Weight(name, array, array.shape),
        constants=constants or {"": None},
        attributes={"features": array.shape[1], "side": side},
        extra=extra,
        work=work,
    )  # fmt: skip


def _constants(value: ir.Value | None, array: Array | None) -> dict[str, Array | None]:
    """A bias by its name."""
    return {str(value.name) if value is not None else "": array}


def _named(value: ir.Value | None) -> tuple[str, tuple[int, ...]]:
    """Name and shape of a weight."""
    array = constant(value)
    return str(value.name if value is not None else "?"), array.shape if array is not None else ()
