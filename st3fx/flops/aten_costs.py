"""What ATen operators cost, from their arguments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

from st3fx.flops import einsum as einsums
from st3fx.flops import products, shared
from st3fx.flops.aten_call import AtenCall
from st3fx.flops.counted import Counted, Elementwise, Lookup
from st3fx.flops.elementwise import BATCH_NORM, RMS_NORM, SOFTMAX, normalisation
from st3fx.flops.operand import Operand

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
    yield from shared.bias(call.get("bias"), call.out)


def matrix(left: str, right: str, added: str = "") -> Rule:
    """The product of two arguments, matrices or vectors, and what is added to it."""

    def rule(call: AtenCall) -> Iterable[Counted]:
        yield products.matrix_product("matmul", call.tensor(left), call.tensor(right))
        yield from shared.bias(call.get(added), call.out)

    return rule


def sparse_addmm(call: AtenCall) -> Iterable[Counted]:
    """The product of a matrix that is stored sparse, and what is added to it."""
    yield products.matrix_product("matmul", call.tensor("mat1"), call.tensor("mat2"))
    yield from shared.bias(call.get("self") if call.get("beta") else None, call.out)


def addbmm(call: AtenCall) -> Iterable[Counted]:
    """The products of a batch of matrices, all of them added up."""
    batch = call.tensor("batch1")
    yield products.matrix_product("matmul", batch, call.tensor("batch2"))
    yield Elementwise("add", batch.shape[0] * call.out.numel)


def einsum(call: AtenCall) -> Iterable[Counted]:
    """Products of two operands in turn."""
    path = list(einsums.pairs(call.arguments["path"]))
    return einsums.einsum(call.arguments["equation"], call.arguments["operands"], path)


def linear(call: AtenCall) -> Iterable[Counted]:
    """A linear layer and its bias."""
    yield products.linear(call.tensor("input"), call.tensor("weight"))
    yield from shared.bias(call.get("bias"), call.out)


def grouped(call: AtenCall) -> Iterable[Counted]:
    """A mixture of experts in one operator: rows of the input, in groups, each by its expert."""
    ends = call.get("offs")
    x, weight = call.tensor("self"), call.tensor("mat2")
    if ends is None:  # as many rows in each group: a batch of matrices
        yield products.matrix_product("matmul", x, weight)
    else:
        yield products.grouped(x, weight, [b - a for a, b in itertools.pairwise((0, *ends))])
    yield from shared.bias(call.get("bias"), call.out)


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
    yield Elementwise("softmax", (SOFTMAX + 1) * scores)
    if call.get("attn_mask") is not None or call.get("attn_bias") is not None:
        yield Elementwise("add", scores)


def rnn_layer(call: AtenCall) -> Iterable[Counted]:
    """One recurrent layer in one direction."""
    x = call.tensor("input")
    rows, kind = x.numel // x.shape[-1], _cell(call)
    for name in ("weight0", "weight1"):
        yield _recurrent(kind, call.tensor(name), rows)
    yield shared.recurrent_cell(kind, rows, call.arguments["hidden_size"])


def rnn(call: AtenCall) -> Iterable[Counted]:
    """All recurrent layers and directions in one operator, as on a GPU."""
    x = call.tensor("input")
    rows, kind = x.numel // x.shape[-1], _cell(call)
    directions = 2 if call.arguments["bidirectional"] else 1
    for weight in call.arguments["weight"]:
        if len(weight.shape) == 2:
            yield _recurrent(kind, weight, rows)
    for _ in range(call.arguments["num_layers"] * directions):
        yield shared.recurrent_cell(kind, rows, call.arguments["hidden_size"])


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


def pool(kind: shared.PoolKind, dims: int) -> Rule:
    """The largest value, or the mean, of each window."""

    def rule(call: AtenCall) -> Iterable[Counted]:
        kernel = call.sizes("kernel_size", dims)
        yield shared.pooling(
            kind,
            call.x,
            call.out,
            kernel=kernel,
            stride=call.sizes("stride", dims) if call.get("stride") else kernel,
            padding=call.sizes("padding", dims),
            dilation=call.sizes("dilation", dims) if call.get("dilation") else [1] * dims,
        )

    return rule


def adaptive(kind: shared.PoolKind, dims: int) -> Rule:
    """The same with windows that share the input out evenly."""
    return lambda call: [shared.adaptive_pooling(kind, call.x, call.out, dims)]


def batch_norm(call: AtenCall) -> Iterable[Counted]:
    """In eval mode; with statistics of the batch, as in instance norm, it costs as any norm."""
    if call.get("training"):
        return norm("batch_norm")(call)
    return [Elementwise("batch_norm", BATCH_NORM * call.x.numel)]


def norm(op: str) -> Rule:
    """Layer and group norm."""

    def rule(call: AtenCall) -> Iterable[Counted]:
        affine = sum(call.get(name) is not None for name in ("weight", "bias"))
        yield Elementwise(op, normalisation(call.x.numel, affine))

    return rule


def rms_norm(call: AtenCall) -> Iterable[Counted]:
    """RMS norm."""
    affine = int(call.get("weight") is not None)
    yield Elementwise("rms_norm", (RMS_NORM + affine) * call.x.numel)


def softmax(call: AtenCall) -> Iterable[Counted]:
    """Softmax and its logarithm."""
    yield Elementwise("softmax", SOFTMAX * call.out.numel)


def gelu(call: AtenCall) -> Iterable[Counted]:
    """GELU in either form."""
    return shared.per_output("gelu_tanh" if call.get("approximate") == "tanh" else "gelu", call.out)


def glu(call: AtenCall) -> Iterable[Counted]:
    """One half times the sigmoid of the other."""
    return [*shared.per_output("sigmoid", call.out), *shared.per_output("mul", call.out)]


def index_add(call: AtenCall) -> Iterable[Counted]:
    """Rows added to those of another tensor, as a mixture's experts add up."""
    source = call.tensor("source")
    return [Elementwise("add", source.numel)] if source.floating else []


def mean(call: AtenCall) -> Iterable[Counted]:
    """A mean over some dimensions."""
    return shared.mean(call.x, call.out, call.get("dim"))


def resample(op: str, sources: int) -> Rule:
    """A weighted sum of so many values for each output."""
    return lambda call: shared.resampling(op, call.out, sources)


def clamp(call: AtenCall) -> Iterable[Counted]:
    """One comparison for each bound."""
    bounds = sum(call.get(name) is not None for name in ("min", "max"))
    return [Elementwise("clamp", bounds * call.out.numel)] if call.out.floating else []


def each(op: str) -> Rule:
    """As many operations for each output as the table says."""
    return lambda call: shared.per_output(op, call.out)


def reduce(op: str) -> Rule:
    """As many operations for each input as the table says."""
    return lambda call: shared.per_input(op, call.x)
