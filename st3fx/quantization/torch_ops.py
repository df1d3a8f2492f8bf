"""What ONNX's operators compute, by torch's: so that a file can be trained.

A function has the operator's inputs as positional arguments and its attributes as keywords, by
ONNX's names and with ONNX's defaults (opset 13 and later). Whole numbers stay on the CPU: shapes
are computed there, as in ONNX Runtime. What is not here has no gradient or is refused by name.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from st3fx.quantization.torch_shapes import (
    Many,
    cast,
    concat,
    constant_of_shape,
    depth_to_space,
    expand,
    flatten,
    gather,
    gather_elements,
    gather_nd,
    numbers,
    pad,
    padded,
    range_,
    require,
    reshape,
    scatter_nd,
    shape_,
    slice_,
    split,
    squeeze,
    tile,
    together,
    transpose,
    unsqueeze,
)

Operator = Callable[..., Any]


def operator(op_type: str, attributes: Mapping[str, Any], inputs: int) -> Operator | None:
    """The function for an operator.

    Returns:
        ``None`` where there is none that takes these attributes and so many inputs.
    """
    found = OPERATORS.get(op_type)
    if found is None:
        return None
    try:
        inspect.signature(found).bind(*[None] * inputs, **attributes)
    except TypeError:
        return None
    except ValueError:  # torch's own, which show no signature
        return None if attributes else found
    return found


def _of_two(function: Callable[..., Tensor]) -> Operator:
    def of_two(a: Tensor, b: Tensor) -> Tensor:
        return function(*together(a, b))

    return of_two


def _of_many(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def of_many(*values: Tensor) -> Tensor:
        return functools.reduce(function, together(*values))

    return of_many


# Products


def _convolve(
    by_rank: Sequence[Callable[..., Tensor]], x: Tensor, pads: Many | None
) -> tuple[Callable[..., Tensor], Tensor, Any]:
    """The function for a rank, its input, and its padding: torch knows none that is one-sided."""
    rank = x.dim() - 2
    before, after = _sides(pads, rank)
    if before == after:
        return by_rank[rank - 1], x, before
    return by_rank[rank - 1], padded(x, before, after, 0.0), [0] * rank


def _sides(pads: Many | None, rank: int) -> tuple[list[int], list[int]]:
    both = list(pads) if pads else [0] * (2 * rank)
    return both[:rank], both[rank:]


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    kernel_shape: Many | None = None,
    strides: Many | None = None,
    pads: Many | None = None,
    dilations: Many | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """``Conv``."""
    require(auto_pad in ("NOTSET", "VALID"), f"auto_pad {auto_pad}")
    function, x, padding = _convolve((F.conv1d, F.conv2d, F.conv3d), x, pads)
    return function(x, w, b, tuple(strides or [1]), padding, tuple(dilations or [1]), group)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    kernel_shape: Many | None = None,
    strides: Many | None = None,
    pads: Many | None = None,
    output_padding: Many | None = None,
    dilations: Many | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """``ConvTranspose``."""
    before, after = _sides(pads, x.dim() - 2)
    require(auto_pad == "NOTSET" and before == after, "padding of a ConvTranspose")
    functions = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
    return functions[x.dim() - 3](
        x, w, b, tuple(strides or [1]), before, tuple(output_padding or [0]), group,
        tuple(dilations or [1]),
    )  # fmt: skip


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """``Gemm``."""
    a, b = a.T if transA else a, b.T if transB else b
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1 else beta * c)


# Numbers of a quantized file


def quantize_linear(x: Tensor, scale: Tensor, zero: Tensor, *, axis: int = 1) -> Tensor:
    """``QuantizeLinear`` to integers of 8 bits, halves to even; without a gradient."""
    kind = torch.iinfo(zero.dtype)
    steps = torch.round(x / _along(scale, x, axis)) + _along(zero, x, axis).to(x.device)
    return steps.clamp(kind.min, kind.max).to(zero.dtype)


def dequantize_linear(
    q: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    """``DequantizeLinear``."""
    scale = _along(scale, q, axis)
    steps = q.to(scale) if zero is None else q.to(scale) - _along(zero, q, axis).to(scale)
    return steps * scale


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values for the places along one dimension of ``x``, or one for all of it."""
    if values.dim() == 0 or not x.dim():
        return values
    return values.reshape([-1 if dim == axis % x.dim() else 1 for dim in range(x.dim())])


# Activations and normalisations


def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """``Clip``."""
    return x.clamp(
        None if low is None else float(low), None if high is None else float(high)
    )  # fmt: skip


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``HardSigmoid``."""
    return (alpha * x + beta).clamp(0, 1)


def hard_swish(x: Tensor) -> Tensor:
    """``HardSwish``."""
    return x * hard_sigmoid(x, alpha=1 / 6)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """``Gelu``."""
    return F.gelu(x, approximate=approximate)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """``PRelu``."""
    return torch.where(x < 0, x * slope, x)


def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """``LayerNormalization``, its first output."""
    shape = x.shape[axis % x.dim() :]
    normal = F.layer_norm(x, shape, eps=epsilon)
    return normal * scale if bias is None else normal * scale + bias


def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """``RMSNormalization``."""
    dims = list(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + epsilon) * scale


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    """``BatchNormalization`` with the statistics that it has."""
    require(not training_mode, "BatchNormalization in training mode")
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """``InstanceNormalization``."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """``GroupNormalization``, whose scales are those of channels (opset 21)."""
    return F.group_norm(x, num_groups, scale, bias, epsilon)


# Windows


def max_pool(
    x: Tensor,
    *,
    kernel_shape: Many,
    strides: Many | None = None,
    pads: Many | None = None,
    dilations: Many | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
) -> Tensor:
    """``MaxPool``, its first output."""
    require(auto_pad in ("NOTSET", "VALID"), f"auto_pad {auto_pad}")
    rank = x.dim() - 2
    before, after = _sides(pads, rank)
    if before != after or any(2 * p > k for p, k in zip(before, kernel_shape, strict=True)):
        x, before = padded(x, before, after, -math.inf), [0] * rank
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    pooled: Tensor = function(
        x, tuple(kernel_shape), tuple(strides or [1] * rank), before, tuple(dilations or [1]),
        bool(ceil_mode),
    )  # fmt: skip
    return pooled


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Many,
    strides: Many | None = None,
    pads: Many | None = None,
    dilations: Many | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """``AveragePool``."""
    rank = x.dim() - 2
    before, after = _sides(pads, rank)
    plain = auto_pad in ("NOTSET", "VALID") and set(dilations or [1]) == {1}
    require(plain and before == after, "padding or dilation of an AveragePool")
    functions: Sequence[Callable[..., Tensor]] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
    steps = tuple(strides or [1] * rank)
    return functions[rank - 1](
        x, tuple(kernel_shape), steps, tuple(before), bool(ceil_mode), bool(count_include_pad)
    )


def _over_image(reduce: Callable[..., Tensor]) -> Operator:
    def over_image(x: Tensor) -> Tensor:
        return reduce(x, list(range(2, x.dim())), keepdim=True)

    return over_image


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    antialias: int = 0,
    keep_aspect_ratio_policy: str = "stretch",
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
) -> Tensor:
    """``Resize`` of images, as torch's ``interpolate`` is exported."""
    places = coordinate_transformation_mode
    if mode == "nearest":
        require(places == "asymmetric" and nearest_mode == "floor", f"Resize by {places}")
    else:
        known = places in ("half_pixel", "pytorch_half_pixel", "align_corners")
        require(known and not antialias, f"Resize by {places}")
    if sizes is not None and sizes.numel():
        size = numbers(sizes)[2:]
    else:
        require(scales is not None, "Resize without a size")
        factors = [] if scales is None else scales.tolist()[2:]
        size = [int(s * f) for s, f in zip(x.shape[2:], factors, strict=True)]
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    name = {"nearest": "nearest", "linear": linear, "cubic": "bicubic"}[mode]
    corners = None if mode == "nearest" else places == "align_corners"
    return F.interpolate(x, size, mode=name, align_corners=corners)


# Reductions


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduced(
        x: Tensor,
        axes: Tensor | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        dims = numbers(axes) or list(range(x.dim()))
        if noop_with_empty_axes and not numbers(axes):
            return x
        return function(x, dims, keepdim=bool(keepdims))

    return reduced


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
        return function(x, axis)

    return softmax


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


def _length(x: Tensor, dims: Many, keepdim: bool) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, 2, tuple(dims), keepdim)
    return length


def _same(x: Tensor) -> Tensor:
    return x


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """``LeakyRelu``."""
    return F.leaky_relu(x, alpha)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``Elu``."""
    return F.elu(x, alpha)


OPERATORS: dict[str, Operator] = {
    "Abs": torch.abs, "Add": _of_two(torch.add), "And": _of_two(torch.logical_and),
    "AveragePool": average_pool, "BatchNormalization": batch_norm, "Cast": cast,
    "Ceil": torch.ceil, "Clip": clip, "Concat": concat, "ConstantOfShape": constant_of_shape,
    "Conv": conv, "ConvTranspose": conv_transpose, "Cos": torch.cos,
    "DepthToSpace": depth_to_space, "DequantizeLinear": dequantize_linear,
    "Div": _of_two(_divide), "Elu": elu, "Equal": _of_two(torch.eq), "Erf": torch.erf,
    "Exp": torch.exp, "Expand": expand, "Flatten": flatten, "Floor": torch.floor,
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd, "Gelu": gelu,
    "Gemm": gemm, "GlobalAveragePool": _over_image(torch.mean),
    "GlobalMaxPool": _over_image(torch.amax), "Greater": _of_two(torch.gt),
    "GreaterOrEqual": _of_two(torch.ge), "GroupNormalization": group_norm,
    "HardSigmoid": hard_sigmoid, "HardSwish": hard_swish, "Identity": _same,
    "InstanceNormalization": instance_norm, "IsNaN": torch.isnan,
    "LayerNormalization": layer_norm, "LeakyRelu": leaky_relu, "Less": _of_two(torch.lt),
    "LessOrEqual": _of_two(torch.le), "Log": torch.log, "LogSoftmax": _softmax(F.log_softmax),
    "MatMul": torch.matmul, "Max": _of_many(torch.maximum), "MaxPool": max_pool,
    "Min": _of_many(torch.minimum), "Mish": F.mish, "Mul": _of_two(torch.mul), "Neg": torch.neg,
    "Not": torch.logical_not, "Or": _of_two(torch.logical_or), "PRelu": prelu, "Pad": pad,
    "Pow": _of_two(torch.pow), "QuantizeLinear": quantize_linear,
    "RMSNormalization": rms_norm, "Range": range_, "Reciprocal": torch.reciprocal,
    "ReduceL2": _reduce(_length), "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean), "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum), "Relu": F.relu, "Reshape": reshape, "Resize": resize,
    "ScatterND": scatter_nd, "Shape": shape_, "Sigmoid": torch.sigmoid, "Sin": torch.sin,
    "Slice": slice_,
    "Softmax": _softmax(F.softmax), "Softplus": F.softplus, "Split": split, "Sqrt": torch.sqrt,
    "Squeeze": squeeze, "Sub": _of_two(torch.sub), "Tanh": torch.tanh, "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze, "Where": _where,
}  # fmt: skip
"""Operators of ONNX's own domain."""
