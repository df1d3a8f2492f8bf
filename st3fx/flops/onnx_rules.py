"""The table of rules for the standard ONNX operators."""

from __future__ import annotations

from typing import Final

from st3fx.flops import onnx_contrib
from st3fx.flops import onnx_costs as costs
from st3fx.flops.elementwise import MOMENTS
from st3fx.flops.onnx_costs import Rule

_SAME_NAME = """
Add Sub Mul Div Neg Abs Sign Floor Ceil Round Sqrt Reciprocal Exp Log Erf Pow Sin Cos Tan Asin
Acos Atan Sinh Cosh Asinh Acosh Atanh Tanh Relu Sigmoid Softplus Softsign Elu Selu Celu Mish
"""
"""Operators whose name in the report is their own in small letters."""

RULES: Final[dict[str, Rule]] = {
    **{name: costs.each(name.lower()) for name in _SAME_NAME.split()},
    # Products.
    "Conv": costs.convolution(1, 2),
    "ConvTranspose": costs.convolution(1, 2, transposed=True),
    "ConvInteger": costs.convolution(1, None),
    "QLinearConv": costs.convolution(3, 8),
    "Gemm": costs.gemm,
    "MatMul": costs.matmul(0, 1),
    "MatMulInteger": costs.matmul(0, 1),
    "QLinearMatMul": costs.matmul(0, 3),
    "Einsum": costs.einsum,
    "Attention": costs.attention,
    "LSTM": costs.recurrent("lstm"),
    "GRU": costs.recurrent("gru"),
    "RNN": costs.recurrent("rnn"),
    "Gather": costs.gather,
    # Pooling and resampling.
    "MaxPool": costs.pool("max_pool"),
    "AveragePool": costs.pool("avg_pool"),
    "GlobalAveragePool": costs.global_average,
    "GlobalMaxPool": costs.global_max,
    "Resize": costs.resize,
    "Upsample": costs.resize,
    # Normalisation.
    "BatchNormalization": costs.batch_norm,
    "LayerNormalization": costs.norm("layer_norm"),
    "GroupNormalization": costs.norm("group_norm"),
    "InstanceNormalization": costs.norm("batch_norm"),
    "MeanVarianceNormalization": costs.times("batch_norm", MOMENTS),
    "RMSNormalization": costs.rms_norm,
    "LpNormalization": costs.times("norm", 3),
    "LRN": costs.local_response,
    "Softmax": costs.softmax,
    "LogSoftmax": costs.softmax,
    # Activations and arithmetic that have other names here.
    "Gelu": costs.gelu,
    "Clip": costs.clip,
    "LeakyRelu": costs.each("leaky_relu"),
    "PRelu": costs.each("leaky_relu"),
    "ThresholdedRelu": costs.each("threshold"),
    "Shrink": costs.each("softshrink"),
    "HardSigmoid": costs.each("hardsigmoid"),
    "HardSwish": costs.each("hardswish"),
    "Swish": costs.each("silu"),
    "Mod": costs.each("remainder"),
    "Min": costs.variadic("minimum"),
    "Max": costs.variadic("maximum"),
    "Sum": costs.variadic("add"),
    "Mean": costs.variadic("add"),
    "ReduceMean": costs.mean,
    "ReduceSum": costs.reduce("sum"),
    "ReduceProd": costs.reduce("prod"),
    "ReduceMax": costs.reduce("max"),
    "ReduceMin": costs.reduce("min"),
    "ReduceL1": costs.reduce("norm"),
    "ReduceL2": costs.reduce("norm"),
    "ReduceSumSquare": costs.reduce("norm"),
    "ReduceLogSumExp": costs.reduce("logsumexp"),
    "ArgMax": costs.reduce("argmax"),
    "ArgMin": costs.reduce("argmin"),
    "CumSum": costs.reduce("cumsum"),
    "Col2Im": costs.reduce("col2im"),
    "QuantizeLinear": costs.times("quantize", 3),  # quotient, rounding, shift
    "DequantizeLinear": costs.times("quantize", 2),
    "DynamicQuantizeLinear": costs.times("quantize", 5),  # and the extremes
    "SimplifiedLayerNormalization": costs.rms_norm,  # ONNX Runtime's, in ONNX's domain
    **{f"com.microsoft:{name}": rule for name, rule in onnx_contrib.RULES.items()},
}
"""Operator -> what it costs. What is in no table is named in the report."""

_MOVING = """
BitCast Cast CastLike Compress Concat ConcatFromSequence DepthToSpace Dropout Expand Flatten
GatherElements GatherND Identity Pad Reshape ReverseSequence Scatter ScatterElements ScatterND
SequenceAt SequenceConstruct SequenceEmpty SequenceInsert Slice SpaceToDepth Split
SplitToSequence Squeeze TensorScatter Tile Transpose Trilu Unsqueeze
"""
"""Copies, layouts, conversions."""

_MAKING = """
Constant ConstantOfShape EyeLike OneHot RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Range Shape Size
"""
"""Fresh tensors."""

_CHOOSING = """
And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Equal Greater GreaterOrEqual IsInf IsNaN Less
LessOrEqual NonMaxSuppression NonZero Not Or TopK Unique Where Xor
"""
"""Choosing and comparing."""

FREE: Final = frozenset(
    [*(_MOVING + _MAKING + _CHOOSING).split(), *(f"com.microsoft:{x}" for x in onnx_contrib.FREE)]
)
"""Operators that move, make, choose or compare values, and calculate nothing."""
