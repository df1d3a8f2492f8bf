"""The table of rules for ATen operators: what each costs, from its arguments by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from st3fx.flops import elementwise, products
from st3fx.flops.einsum import einsum_products, pairs
from st3fx.flops.elementwise import PER_INPUT, PER_OUTPUT, each, reduce, softmax
from st3fx.flops.operand import Counted, Elementwise, Lookup, Operand


@dataclass(frozen=True)
class AtenCall:
    """An operator of the dispatcher.

    Attributes:
        op: ``convolution``: without namespace if it is ``aten``, without the underscore of a
            variant in place.
        arguments: Schema name -> value, with an :class:`Operand` for every tensor.
        outputs: The tensors that it gives back.
    """

    op: str
    arguments: dict[str, Any]
    outputs: tuple[Operand, ...]

    @property
    def out(self) -> Operand:
        """The first tensor that it gives back."""
        return self.outputs[0]

    @property
    def operands(self) -> list[Operand]:
        """All tensors that it is given."""
        found: list[Operand] = []
        for value in self.arguments.values():
            items = value if isinstance(value, list | tuple) else (value,)
            found.extend(item for item in items if isinstance(item, Operand))
        return found

    @property
    def x(self) -> Operand:
        """The first tensor that it is given."""
        return self.operands[0]

    def tensor(self, name: str) -> Operand:
        """A tensor argument."""
        value = self.arguments[name]
        assert isinstance(value, Operand)
        return value

    def get(self, name: str) -> Any:
        """Any argument; ``None`` where it is not given or there is none of that name."""
        return self.arguments.get(name)

    def sizes(self, name: str, dims: int) -> list[int]:
        """A list of sizes, one per dimension, that may be given as a single one."""
        value: Sequence[int] | int = self.arguments[name]
        listed = [value] if isinstance(value, int) else list(value)
        return listed * dims if len(listed) == 1 else listed


Rule = Callable[[AtenCall], Iterable[Counted]]


def convolution(call: AtenCall) -> Iterable[Counted]:
    """A convolution, transposed or not, and its bias."""
    weight = call.tensor("weight")
    dims = len(weight.shape) - 2
    yield products.convolution(
        call.tensor("input"),
        weight,
        call.out.shape,
        stride=call.sizes("stride", dims),
        padding=call.sizes("padding", dims),
        dilation=call.sizes("dilation", dims),
        groups=call.arguments["groups"],
        transposed=call.arguments["transposed"],
    )
    yield from elementwise.bias(call.get("bias"), call.out)


def matrix(left: str, right: str, added: str = "") -> Rule:
    """The product of two arguments, matrices or vectors, and what is added to it."""

    def rule(call: AtenCall) -> Iterable[Counted]:
        yield products.matrix_product("matmul", call.tensor(left), call.tensor(right))
        yield from elementwise.bias(call.get(added), call.out)

    return rule


def sparse_addmm(call: AtenCall) -> Iterable[Counted]:
    """The product of a matrix that is stored sparse, and what is added to it."""
    yield products.matrix_product("matmul", call.tensor("mat1"), call.tensor("mat2"))
    yield from elementwise.bias(call.get("self") if call.get("beta") else None, call.out)


def addbmm(call: AtenCall) -> Iterable[Counted]:
    """The products of a batch of matrices, all of them added up."""
    batch = call.tensor("batch1")
    yield products.matrix_product("matmul", batch, call.tensor("batch2"))
    yield Elementwise("add", batch.shape[0] * call.out.numel)


def einsum(call: AtenCall) -> Iterable[Counted]:
    """Products of two operands in turn."""
    path = list(pairs(call.arguments["path"]))
    return einsum_products(call.arguments["equation"], call.arguments["operands"], path)


def linear(call: AtenCall) -> Iterable[Counted]:
    """A linear layer and its bias."""
    yield products.linear(call.tensor("input"), call.tensor("weight"))
    yield from elementwise.bias(call.get("bias"), call.out)


def grouped(call: AtenCall) -> Iterable[Counted]:
    """A mixture of experts in one operator: rows of the input, in groups, each by its expert."""
    ends = call.get("offs")
    x, weight = call.tensor("self"), call.tensor("mat2")
    if ends is None:  # as many rows in each group: a batch of matrices
        yield products.matrix_product("matmul", x, weight)
    else:
        yield products.grouped(x, weight, [b - a for a, b in itertools.pairwise((0, *ends))])
    yield from elementwise.bias(call.get("bias"), call.out)


def trilinear(call: AtenCall) -> Iterable[Counted]:
    """``Σ_ij x1_i · W_kij · x2_j``, as bilinear layers call it: first with W, then with x2."""
    weight = call.tensor("i2")
    rows = math.prod(call.out.shape[:-1])
    yield products.contraction("bilinear", rows * weight.numel, weight)
    yield products.contraction("bilinear", rows * weight.shape[-3] * weight.shape[-1])


def attention(call: AtenCall) -> Iterable[Counted]:
    """Both products, the scale, the softmax and what is added as a mask; in full if causal."""
    query, key = call.tensor("query"), call.tensor("key")
    yield products.attention(query, key, call.tensor("value"))
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    mask = call.get("attn_mask") if call.get("attn_bias") is None else call.get("attn_bias")
    yield from elementwise.attention(scores, mask)


def rnn_layer(call: AtenCall) -> Iterable[Counted]:
    """One recurrent layer in one direction."""
    x = call.tensor("input")
    rows, kind = x.numel // x.shape[-1], _cell(call)
    for name in ("weight0", "weight1"):
        yield _recurrent(kind, call.tensor(name), rows)
    yield elementwise.recurrent_cell(kind, rows, call.arguments["hidden_size"])


def rnn(call: AtenCall) -> Iterable[Counted]:
    """All recurrent layers and directions in one operator, as on a GPU."""
    x = call.tensor("input")
    rows, kind = x.numel // x.shape[-1], _cell(call)
    directions = 2 if call.arguments["bidirectional"] else 1
    for weight in call.arguments["weight"]:
        if len(weight.shape) == 2:
            yield _recurrent(kind, weight, rows)
    for _ in range(call.arguments["num_layers"] * directions):
        yield elementwise.recurrent_cell(kind, rows, call.arguments["hidden_size"])


def _cell(call: AtenCall) -> str:
    return {2: "lstm", 3: "gru"}.get(call.arguments["mode"], "rnn")


def _recurrent(kind: str, weight: Operand, rows: int) -> Counted:
    # At every step a row of the input, or of the state, is multiplied as in a linear layer.
    return products.linear(Operand((rows, weight.shape[-1])), weight, kind)


def lookup(call: AtenCall) -> Iterable[Counted]:
    """Rows of a table, copied."""
    constant = call.tensor("weight").constant
    if constant is not None:
        yield Lookup(constant)


def embedding_bag(call: AtenCall) -> Iterable[Counted]:
    """Rows of a table, added up in bags."""
    yield from lookup(call)
    yield Elementwise("embedding_bag", call.tensor("indices").numel * call.out.shape[-1])


def pool(kind: elementwise.PoolKind, dims: int) -> Rule:
    """The largest value, or the mean, of each window."""

    def rule(call: AtenCall) -> Iterable[Counted]:
        kernel = call.sizes("kernel_size", dims)
        yield elementwise.pooling(
            kind,
            call.x,
            call.out,
            kernel=kernel,
            stride=call.sizes("stride", dims) if call.get("stride") else kernel,
            padding=call.sizes("padding", dims),
            dilation=call.sizes("dilation", dims) if call.get("dilation") else [1] * dims,
        )

    return rule


def adaptive(kind: elementwise.PoolKind, dims: int) -> Rule:
    """The largest value, or the mean, of windows that share the input out evenly."""
    return lambda call: [elementwise.adaptive_pooling(kind, call.x, call.out, dims)]


def batch_norm(call: AtenCall) -> Iterable[Counted]:
    """Batch norm; with statistics of the batch, as in instance norm, it costs as any norm."""
    if call.get("training"):
        return norm("batch_norm")(call)
    return elementwise.batch_norm(call.x)


def norm(op: str) -> Rule:
    """Layer and group norm."""
    return lambda call: elementwise.norm(op, call.x, call.get("weight"), call.get("bias"))


def rms_norm(call: AtenCall) -> Iterable[Counted]:
    """RMS norm."""
    return elementwise.rms_norm(call.x, call.get("weight"))


def glu(call: AtenCall) -> Iterable[Counted]:
    """One half times the sigmoid of the other."""
    return [*elementwise.per_output("sigmoid", call.out), *elementwise.per_output("mul", call.out)]


def index_add(call: AtenCall) -> Iterable[Counted]:
    """Rows added to those of another tensor, as a mixture's experts add up."""
    source = call.tensor("source")
    return [Elementwise("add", source.numel)] if source.floating else []


def mean(call: AtenCall) -> Iterable[Counted]:
    """A mean over some dimensions."""
    return elementwise.mean(call.x, call.out, call.get("dim"))


def resample(op: str, sources: int) -> Rule:
    """A weighted sum of so many values for each output."""
    return lambda call: elementwise.resampling(op, call.out, sources)


def clamp(call: AtenCall) -> Iterable[Counted]:
    """One comparison for each bound."""
    bounds = sum(call.get(name) is not None for name in ("min", "max"))
    return elementwise.clamp(call.out, bounds)


ATTENTION: Final = ("flash_attention", "flash_attention_for_cpu", "efficient_attention",
                    "cudnn_attention", "fused_attention_overrideable")  # fmt: skip

RULES: Final[dict[str, Rule]] = {
    **{op: each(op) for op in PER_OUTPUT},
    **{op: reduce(op) for op in PER_INPUT},
    # Products.
    "convolution": convolution,
    "_convolution": convolution,
    "convolution_overrideable": convolution,
    "mm": matrix("self", "mat2"),
    "bmm": matrix("self", "mat2"),
    "matmul": matrix("self", "other"),
    "mv": matrix("self", "vec"),
    "dot": matrix("self", "tensor"),
    "addmm": matrix("mat1", "mat2", "self"),
    "_sparse_addmm": sparse_addmm,
    "_addmm_activation": matrix("mat1", "mat2", "self"),
    "baddbmm": matrix("batch1", "batch2", "self"),
    "addmv": matrix("mat", "vec", "self"),
    "addbmm": addbmm,
    "linear": linear,
    "einsum": einsum,
    "_grouped_mm": grouped,
    "_trilinear": trilinear,
    **{f"_scaled_dot_product_{kind}": attention for kind in ATTENTION},
    "mkldnn_rnn_layer": rnn_layer,
    "_cudnn_rnn": rnn,
    "_miopen_rnn": rnn,
    "embedding": lookup,
    "_embedding_bag": embedding_bag,
    "_embedding_bag_forward_only": embedding_bag,
    # Pooling and resampling.
    "max_pool2d_with_indices": pool("max_pool", 2),
    "max_pool3d_with_indices": pool("max_pool", 3),
    "avg_pool2d": pool("avg_pool", 2),
    "avg_pool3d": pool("avg_pool", 3),
    "_adaptive_avg_pool2d": adaptive("avg_pool", 2),
    "_adaptive_avg_pool3d": adaptive("avg_pool", 3),
    "adaptive_max_pool2d": adaptive("max_pool", 2),
    "adaptive_max_pool3d": adaptive("max_pool", 3),
    "upsample_linear1d": resample("upsample_linear", 2),
    "upsample_bilinear2d": resample("upsample_linear", 4),
    "upsample_trilinear3d": resample("upsample_linear", 8),
    "upsample_bicubic2d": resample("upsample_cubic", 16),
    # Normalisation.
    "native_batch_norm": batch_norm,
    "cudnn_batch_norm": batch_norm,
    "miopen_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "_batch_norm_with_update": batch_norm,
    "native_layer_norm": norm("layer_norm"),
    "native_group_norm": norm("group_norm"),
    "_fused_rms_norm": rms_norm,
    "_softmax": softmax,
    "_log_softmax": softmax,
    "_safe_softmax": softmax,
    # Activations and arithmetic that have other names here.
    "gelu": lambda call: elementwise.gelu(call.out, call.get("approximate")),
    "glu": glu,
    "clamp": clamp,
    "clamp_min": each("relu"),
    "clamp_max": each("minimum"),
    "_prelu_kernel": each("leaky_relu"),
    "rrelu_with_noise": each("leaky_relu"),
    "log_sigmoid_forward": each("log_sigmoid"),
    "rsub": each("sub"),
    "square": each("mul"),
    "fmod": each("remainder"),
    "floor_divide": each("div"),
    "index_add": index_add,
    "aminmax": reduce("aminmax"),
    "log2": each("log"),
    "log10": each("log"),
    "exp2": each("exp"),
    "erfc": each("erf"),
    "atan2": each("atan"),
    "amax": reduce("max"),
    "amin": reduce("min"),
    "mean": mean,
    "std": reduce("var"),
    "var_mean": reduce("var"),
    "std_mean": reduce("var"),
    "linalg_vector_norm": reduce("norm"),
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
