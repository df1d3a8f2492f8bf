"""The table of rules for ATen operators."""

from __future__ import annotations

from typing import Final

from st3fx.flops import aten_costs as costs
from st3fx.flops.aten_costs import Rule
from st3fx.flops.elementwise import PER_INPUT, PER_OUTPUT

ATTENTION: Final = ("flash_attention", "flash_attention_for_cpu", "efficient_attention",
                    "cudnn_attention", "fused_attention_overrideable")  # fmt: skip

RULES: Final[dict[str, Rule]] = {
    **{op: costs.each(op) for op in PER_OUTPUT},
    **{op: costs.reduce(op) for op in PER_INPUT},
    # Products.
    "convolution": costs.convolution,
    "_convolution": costs.convolution,
    "convolution_overrideable": costs.convolution,
    "mm": costs.matrix("self", "mat2"),
    "bmm": costs.matrix("self", "mat2"),
    "matmul": costs.matrix("self", "other"),
    "mv": costs.matrix("self", "vec"),
    "dot": costs.matrix("self", "tensor"),
    "addmm": costs.matrix("mat1", "mat2", "self"),
    "_sparse_addmm": costs.sparse_addmm,
    "_addmm_activation": costs.matrix("mat1", "mat2", "self"),
    "baddbmm": costs.matrix("batch1", "batch2", "self"),
    "addmv": costs.matrix("mat", "vec", "self"),
    "addbmm": costs.addbmm,
    "linear": costs.linear,
    "einsum": costs.einsum,
    "_grouped_mm": costs.grouped,
    "_trilinear": costs.trilinear,
    **{f"_scaled_dot_product_{kind}": costs.attention for kind in ATTENTION},
    "mkldnn_rnn_layer": costs.rnn_layer,
    "_cudnn_rnn": costs.rnn,
    "_miopen_rnn": costs.rnn,
    "embedding": costs.lookup,
    "_embedding_bag": costs.embedding_bag,
    "_embedding_bag_forward_only": costs.embedding_bag,
    # Pooling and resampling.
    "max_pool2d_with_indices": costs.pool("max_pool", 2),
    "max_pool3d_with_indices": costs.pool("max_pool", 3),
    "avg_pool2d": costs.pool("avg_pool", 2),
    "avg_pool3d": costs.pool("avg_pool", 3),
    "_adaptive_avg_pool2d": costs.adaptive("avg_pool", 2),
    "_adaptive_avg_pool3d": costs.adaptive("avg_pool", 3),
    "adaptive_max_pool2d": costs.adaptive("max_pool", 2),
    "adaptive_max_pool3d": costs.adaptive("max_pool", 3),
    "upsample_linear1d": costs.resample("upsample_linear", 2),
    "upsample_bilinear2d": costs.resample("upsample_linear", 4),
    "upsample_trilinear3d": costs.resample("upsample_linear", 8),
    "upsample_bicubic2d": costs.resample("upsample_cubic", 16),
    # Normalisation.
    "native_batch_norm": costs.batch_norm,
    "cudnn_batch_norm": costs.batch_norm,
    "miopen_batch_norm": costs.batch_norm,
    "_native_batch_norm_legit": costs.batch_norm,
    "_native_batch_norm_legit_no_training": costs.batch_norm,
    "_batch_norm_with_update": costs.batch_norm,
    "native_layer_norm": costs.norm("layer_norm"),
    "native_group_norm": costs.norm("group_norm"),
    "_fused_rms_norm": costs.rms_norm,
    "_softmax": costs.softmax,
    "_log_softmax": costs.softmax,
    "_safe_softmax": costs.softmax,
    # Activations and arithmetic that have other names here.
    "gelu": costs.gelu,
    "glu": costs.glu,
    "clamp": costs.clamp,
    "clamp_min": costs.each("relu"),
    "clamp_max": costs.each("minimum"),
    "_prelu_kernel": costs.each("leaky_relu"),
    "rrelu_with_noise": costs.each("leaky_relu"),
    "log_sigmoid_forward": costs.each("log_sigmoid"),
    "rsub": costs.each("sub"),
    "square": costs.each("mul"),
    "fmod": costs.each("remainder"),
    "floor_divide": costs.each("div"),
    "index_add": costs.index_add,
    "aminmax": costs.reduce("aminmax"),
    "log2": costs.each("log"),
    "log10": costs.each("log"),
    "exp2": costs.each("exp"),
    "erfc": costs.each("erf"),
    "atan2": costs.each("atan"),
    "amax": costs.reduce("max"),
    "amin": costs.reduce("min"),
    "mean": costs.mean,
    "std": costs.reduce("var"),
    "var_mean": costs.reduce("var"),
    "std_mean": costs.reduce("var"),
    "linalg_vector_norm": costs.reduce("norm"),
}
"""Operator -> what it costs. What is in no table is named in the report."""

_MOVING = """
_conj _conj_physical _pack_padded_sequence _pad_packed_sequence _reshape_alias _reshape_copy
_to_copy _unsafe_view _upsample_nearest_exact1d _upsample_nearest_exact2d alias as_strided
block_diag cat channel_shuffle clone complex constant_pad_nd contiguous copy detach
expand_copy flip im2col imag index_select lift_fresh lift_fresh_copy narrow_copy permute_copy
pixel_shuffle pixel_unshuffle real reflection_pad1d reflection_pad2d reflection_pad3d repeat
repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape resize roll
rot90 select_copy slice_copy split_copy split_with_sizes_copy squeeze stack swapaxes swapdims
t transpose tril triu unfold_copy unsafe_split unsafe_split_with_sizes unsqueeze
upsample_nearest1d upsample_nearest2d upsample_nearest3d view_as_complex view_as_real
view_copy
"""
"""Copies, layouts, conversions."""

_MAKING = """
arange bernoulli dropout empty empty_like empty_permuted empty_strided fill full full_like
native_dropout new_empty new_empty_strided new_full new_ones new_zeros normal ones ones_like
rand_like randn_like scalar_tensor uniform zero zeros zeros_like
"""
"""Fresh tensors."""

_CHOOSING = """
_local_scalar_dense _unique2 _unsafe_index _unsafe_index_put _unsafe_masked_index all any
argsort bincount bitwise_and bitwise_not bitwise_or bitwise_xor bucketize eq equal gather ge
gt histc index index_copy index_fill index_put is_same_size isfinite isinf isnan le logical_and
logical_not logical_or logical_xor lt masked_fill masked_scatter masked_select ne nonzero
nonzero_static one_hot resize_as scatter searchsorted select_scatter set slice_scatter sort
sym_size take topk unique unique_consecutive where
"""
"""Choosing and comparing."""

FREE: Final = frozenset((_MOVING + _MAKING + _CHOOSING).split())
"""Operators that move, make, choose or compare values, and calculate nothing."""
