"""Operators that multiply with a weight: their tables, and what one of them does with it.

There is a table for the ATen level and one for the fx level. Each gives the position of the weight;
what is in no table is no multiplication. Of a multiplication that was seen, ``describe`` gives the
layout and the groups, and ``count_macs`` the number of multiplications.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from st3fx.modules.same import tensors_in
from st3fx.passes.convert.origins import Origin
from st3fx.plan.sites import Layout
from st3fx.provenance import MOVING, storage_of
from st3fx.tensors import is_dense

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
"""Of weights and buffers alone these compute a weight (spectral norm), and are no layer."""

LOOKUPS = frozenset({"embedding", "_embedding_bag", "_embedding_bag_forward_only"})
"""ATen operators that read rows of a table: of a tied embedding, beside the projection."""

FX_LOOKUPS = frozenset({F.embedding, F.embedding_bag, torch.embedding, torch.embedding_bag})
"""Functions that do so in an fx graph."""

ATEN_LAYOUT = frozenset(
    f"aten::{name}"
    for name in (
        *MOVING, "to", "detach", "alias", "lift_fresh", "cat", "_conj", "mkldnn_reorder",
    )
)  # fmt: skip
"""Operators beside views that only move a parameter's values."""

LOOKING_UP = frozenset(f"aten::{name}" for name in LOOKUPS)
"""The full names of the same."""

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


@dataclass
class Running:
    """What is under way while a model runs.

    Attributes:
        modules: Full names of the modules whose forwards run, the innermost last.
        linear: How many calls of ``F.linear``.
    """

    modules: list[str]
    linear: int = 0


@dataclass(frozen=True)
class Operation:
    """One operator that has run.

    Attributes:
        name: That of its schema, without the mark of an operator in place.
        func: The operator itself.
        args: Positional arguments; those at the end that have their defaults are not among them.
        kwargs: Arguments that have to be named.
        out: What it gave.
        module: Full name of the module whose own forward issued it.
        is_linear: Whether it is a part of a call of ``F.linear``.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str
    is_linear: bool

    @classmethod
    def of(
        cls, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, running: Running
    ) -> Operation:
        """Make one from what a dispatch mode is given."""
        name: str = func._schema.name
        if func._schema.is_mutable and name.removesuffix("_") in ATEN_MULTIPLY:
            name = name.removesuffix("_")  # ``addmm_`` is a product as ``addmm`` is
        return cls(name, func, args, kwargs, out, running.modules[-1], running.linear > 0)

    @property
    def word(self) -> str:
        """Its name for people."""
        return self.name.removeprefix("aten::")

    def tensors(self) -> list[Tensor]:
        """All tensors that it was given."""
        return tensors_in([*self.args, *self.kwargs.values()])

    def operand(self, position: int) -> list[Tensor]:
        """The tensors of one positional argument."""
        given = self.args[position] if position < len(self.args) else None
        return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]

    def argument(self, name: str, default: Any) -> Any:
        """An argument by its name in the schema."""
        position = _positions(self.func).get(name, len(self.args))
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


@functools.lru_cache(maxsize=256)
def _positions(func: Any) -> dict[str, int]:
    """Where an operator's arguments stand."""
    return {argument.name: place for place, argument in enumerate(func._schema.arguments)}


def is_weight(op: Operation, position: int, operand: Tensor, origin: Origin) -> bool:
    """Whether a product of parameters is the weight of another product.

    It is if it was combined with a parameter of its shape (``W + B @ A``). Alone it might as well
    be a learned input that a layer has transformed: queries, keys of latent tokens. It is a weight
    then if the forward that made it uses it as one: in a convolution, as the second argument of
    ``F.linear``, or as the matrix on the right side.

    Args:
        op: The other product.
        position: Of the argument that the first one's result is.
        operand: That argument.
        origin: Where it comes from.
    """
    last = ATEN_MULTIPLY[op.name][-1]
    if op.name in CONVOLUTIONS or op.name in RECURRENT:
        placed, right = position == last, True
    elif op.name in ("aten::mv", "aten::addmv"):
        placed = right = position != last
    elif op.name in PAIR_PRODUCTS:
        placed = True
        right = position == last and (op.is_linear or _is_as_made(operand, origin.base))
    else:
        return False
    own = all(product.module == op.module for product in origin.products)
    return placed and (origin.mixed or (own and right))


def _is_as_made(operand: Tensor, base: Tensor | None) -> bool:
    """Whether a matrix is no other view of a computed one."""
    if base is None or operand.dim() != 2 or not is_dense(operand):
        return False
    return operand.shape == base.shape and operand.stride() == base.stride()


def count_macs(op: Operation, weight: Tensor, position: int) -> int:
    """Multiplications of one operator with a weight, padding included.

    Each scalar multiplies once for every position: of a convolution's output (of its input if it is
    transposed), of a recurrent layer's sequence, of the rows that a matrix product transforms. What
    has no rule counts one for each.
    """
    leaves = pytree.tree_leaves(op.out)
    result = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), weight)
    if op.name in CONVOLUTIONS:
        transposed = bool(op.argument("transposed", False))
        channels = weight.shape[2] if op.name == "aten::conv_tbc" else weight.shape[0]
        positions = (op.args[0] if transposed else result).numel() // max(1, channels)
        return weight.numel() * positions
    if op.name in RECURRENT:
        sequence: Tensor = op.args[0]
        return weight.numel() * (sequence.numel() // max(1, sequence.shape[-1]))
    if op.name not in PAIR_PRODUCTS or weight.dim() < 2:
        return weight.numel()
    on_the_right = position == ATEN_MULTIPLY[op.name][-1]
    summed = -2 if on_the_right and not op.name.endswith("linear") else -1
    batches = weight.shape[0] if op.name == "aten::addbmm" else 1
    return result.numel() * weight.shape[summed] * batches


def describe(
    op: Operation, tensor: Tensor, position: int, base: Tensor | None
) -> tuple[str, Layout, int]:
    """Operator, output channels and groups of one multiplication.

    Args:
        op: The operator.
        tensor: The weight as it multiplies.
        position: Of its argument.
        base: The parameter, or the computed tensor, that ``tensor`` is a view of.
    """
    if op.name == "aten::conv_tbc":
        return "conv_tbc", Layout((2,)), 1
    if op.name in CONVOLUTIONS:
        transposed, groups = op.argument("transposed", False), int(op.argument("groups", 1))
        kind = "deform_conv" if "deform" in op.name else "conv"
        name = f"{kind}{'_transpose' if transposed else ''}{tensor.dim() - 2}d"
        return name, convolution_layout(name, groups), groups
    if op.name in RECURRENT:
        return "rnn", Layout((0,)), 1
    if op.name in ("aten::linear", "aten::mkldnn_linear"):
        return "linear", Layout((0,)), 1
    if op.name == "aten::_trilinear":
        return "bilinear", Layout((0,)), 1
    if op.name in ("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd"):
        return "linear", Layout((0,)), 1
    if "scaled_dot_product" in op.name or tensor.dim() < 2:
        return "matmul", Layout(()), 1
    right = position == ATEN_MULTIPLY[op.name][-1]
    columns = tensor.dim() - 1 if right else tensor.dim() - 2
    layout = Layout(_source_dims(tensor, base, [*range(tensor.dim() - 2), columns]))
    if op.is_linear and right and base is not None and base.shape == (1, tensor.shape[0]):
        layout = Layout((0,))  # a single output feature has no stride to be found by
    return ("linear" if layout.channel_dims == (0,) and right else "matmul"), layout, 1


def convolution_layout(op: str, groups: int) -> Layout:
    """Output channels of a convolution weight; a transposed one has them in dimension 1."""
    if not op.startswith("conv_transpose"):
        return Layout((0,))
    return Layout((0, 2), groups) if groups > 1 else Layout((1,))


def _source_dims(view: Tensor, base: Tensor | None, dims: list[int]) -> tuple[int, ...]:
    """The dimensions of ``base`` that dimensions of its view run along, found by their strides."""
    here, there = storage_of(view), None if base is None else storage_of(base)
    if base is None or here is None or there is None:
        return ()
    if here._cdata != there._cdata:
        return tuple(dims) if base.shape == view.shape else ()
    strides = {view.stride(d) for d in dims if view.size(d) > 1 and view.stride(d) > 0}
    return tuple(d for d in range(base.dim()) if base.size(d) > 1 and base.stride(d) in strides)
