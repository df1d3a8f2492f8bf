"""Tables of the operators that multiply with a weight, at the ATen and at the fx level.

Each table gives the position of the weight; what is in no table is no multiplication.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

ATEN_MULTIPLY: dict[str, tuple[int, ...]] = {
    "aten::convolution": (0, 1),
    "aten::_convolution": (0, 1),
    "aten::mkldnn_convolution": (0, 1),
    "aten::convolution_overrideable": (0, 1),
    "aten::cudnn_convolution": (0, 1),
    "aten::miopen_convolution": (0, 1),
    "aten::_conv_depthwise2d": (0, 1),
    "aten::conv_depthwise3d": (0, 1),
    "aten::_slow_conv2d_forward": (0, 1),
    "aten::slow_conv3d_forward": (0, 1),
    "aten::conv_tbc": (0, 1),
    "torchvision::deform_conv2d": (0, 1),
    "aten::linear": (0, 1),
    "aten::mkldnn_linear": (0, 1),
    "aten::addmm": (1, 2),
    "aten::_addmm_activation": (1, 2),
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::matmul": (0, 1),
    "aten::baddbmm": (1, 2),
    "aten::addbmm": (1, 2),
    "aten::_sparse_addmm": (1, 2),
    "aten::sparse_sampled_addmm": (1, 2),
    "aten::_scaled_mm": (0, 1),
    "aten::mv": (0, 1),
    "aten::addmv": (1, 2),
    "aten::dot": (0, 1),
    "aten::_trilinear": (0, 1, 2),
    "aten::_grouped_mm": (0, 1),
    "aten::_scaled_dot_product_flash_attention": (0, 1, 2),
    "aten::_scaled_dot_product_flash_attention_for_cpu": (0, 1, 2),
    "aten::_scaled_dot_product_efficient_attention": (0, 1, 2),
    "aten::_scaled_dot_product_cudnn_attention": (0, 1, 2),
    "aten::_native_multi_head_attention": (5, 7),
    "aten::_transformer_encoder_layer_fwd": (3, 5, 14, 16),
    "aten::mkldnn_rnn_layer": (0, 1, 2),
    "aten::lstm": (0, 2),
    "aten::gru": (0, 2),
    "aten::rnn_tanh": (0, 2),
    "aten::rnn_relu": (0, 2),
    "aten::_cudnn_rnn": (0, 1),
    "aten::_miopen_rnn": (0, 1),
}
"""ATen operator -> arguments that it multiplies with each other (a list argument counts whole)."""

PAIR_PRODUCTS = frozenset(
    f"aten::{name}"
    for name in ("linear", "mkldnn_linear", "addmm", "_addmm_activation", "mm", "bmm", "matmul",
                 "baddbmm", "addbmm", "_sparse_addmm", "sparse_sampled_addmm", "_scaled_mm")
)  # fmt: skip
"""Products of a left and a right matrix, either of which may be the weight."""

CONVOLUTIONS = frozenset(name for name in ATEN_MULTIPLY if "conv" in name)
"""Operators that slide a weight over images or series."""

VECTOR_PRODUCTS = frozenset({"aten::mv", "aten::addmv", "aten::dot"})
"""With weights and buffers alone these compute a weight (spectral norm), and are no layer."""

LOOKUPS = frozenset({"embedding", "_embedding_bag", "_embedding_bag_forward_only"})
"""ATen operators that read rows of a table: of a tied embedding, beside the projection."""

FX_LOOKUPS = frozenset({F.embedding, F.embedding_bag, torch.embedding, torch.embedding_bag})
"""The same at the fx level."""

ATEN_LAYOUT = frozenset(
    f"aten::{name}"
    for name in (
        "clone", "_to_copy", "to", "contiguous", "detach", "alias", "lift_fresh", "_unsafe_view",
        "_reshape_alias", "reshape", "_reshape_copy", "cat", "_conj", "mkldnn_reorder",
    )
)  # fmt: skip
"""Operators beside views that only move a parameter's values."""

LOOKING_UP = frozenset(f"aten::{name}" for name in LOOKUPS)
"""With their full names."""

SELECTING = frozenset({"aten::index", "aten::index_select"})
"""Operators that take parts of a tensor, by data: of an expert's weights, or rows of a table."""

ROUNDING = frozenset(
    f"aten::{name}"
    for name in (
        "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
        "fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask",
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
        "_fake_quantize_learnable_per_tensor_affine", "_fake_quantize_learnable_per_channel_affine",
        "_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant",
    )
)  # fmt: skip
"""Fake quantisation: it leaves zeros as they are, so that a weight is sparse before and after."""

WITHOUT_VALUES = frozenset(
    {
        "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
        "randint_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided",
    }
)  # fmt: skip
"""Operators that make a tensor like another one, and read none of its values."""

COMBINING = frozenset(
    f"aten::{name}"
    for name in (
        "add", "sub", "rsub", "mul", "div", "neg", "addcmul", "addcdiv", "lerp", "sum", "mean",
        "norm", "linalg_vector_norm", "sqrt", "rsqrt", "reciprocal", "pow", "clamp_min", "clamp",
        "std", "var", "var_mean", "std_mean", "add_", "sub_", "mul_", "div_", "copy_", "stack",
        "index", "index_select", "sign", "abs", "tril", "triu", "where", "masked_fill", "roll",
    )
)  # fmt: skip
"""What weights are combined, scaled and normalised with; an activation function is none."""

RECURRENT = frozenset(
    name for name in ATEN_MULTIPLY if name.endswith(("lstm", "gru", "rnn_tanh", "rnn_relu", "rnn"))
) | {"aten::mkldnn_rnn_layer"}

_CONVOLUTIONS: dict[Callable[..., Any], str] = {
    F.conv1d: "conv1d",
    F.conv2d: "conv2d",
    F.conv3d: "conv3d",
    torch.conv1d: "conv1d",
    torch.conv2d: "conv2d",
    torch.conv3d: "conv3d",
    F.conv_transpose1d: "conv_transpose1d",
    F.conv_transpose2d: "conv_transpose2d",
    F.conv_transpose3d: "conv_transpose3d",
}

FX_WEIGHT: dict[Any, tuple[str, int, str]] = {
    **{function: (op, 1, "weight") for function, op in _CONVOLUTIONS.items()},
    F.linear: ("linear", 1, "weight"),
    torch.matmul: ("matmul", 1, "other"),
    operator.matmul: ("matmul", 1, "other"),
    torch.mm: ("matmul", 1, "mat2"),
    torch.bmm: ("matmul", 1, "mat2"),
    torch.addmm: ("matmul", 2, "mat2"),
    torch.baddbmm: ("matmul", 2, "batch2"),
    "matmul": ("matmul", 1, "other"),
    "mm": ("matmul", 1, "mat2"),
    "bmm": ("matmul", 1, "mat2"),
}
"""fx target (function, or method name) -> operator, position and keyword of its weight."""
