"""The pass on graphs that are written out: no exporter is needed for these."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from st3fx.passes.onnx.fold_batch_norm import FoldBatchNorm
from st3fx.passes.onnx.pipeline import prepare

Array = npt.NDArray[Any]

CONV = "y = Conv <pads = [1, 1, 1, 1]> (x, w)"
NORM = "z = BatchNormalization <epsilon = 0.001> (y, bn.weight, bn.bias, bn.mean, bn.var)"


def _arrays(*shape: int, channels: int, seed: int = 0) -> dict[str, Array]:
    """A sparse weight and the parameters of a batch norm."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=shape) * (random.random(shape) > 0.8) + 0.0
    return {
        "w": weight.astype(np.float32),
        "bn.weight": random.normal(size=channels).astype(np.float32),
        "bn.bias": random.normal(size=channels).astype(np.float32),
        "bn.mean": random.normal(size=channels).astype(np.float32),
        "bn.var": random.uniform(0.1, 2, channels).astype(np.float32),
    }


def _model(body: str, arrays: dict[str, Array], x: str, z: str) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 18]> g (float{x} x) => (float{z} z) {{ {body} }}'
    model = onnx.parser.parse_model(text.replace("bn.", "bn_").replace("bn2.", "bn2_"))
    inner = [about.g.node for node in model.graph.node for about in node.attribute]
    for node in (*model.graph.node, *(node for nodes in inner for node in nodes)):
        # The parser takes no dots in names, which parameters have.
        node.input[:] = [name.replace("_", ".") for name in node.input]
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    return model


def _run(model: onnx.ModelProto, x: Array) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    result: Array = session.run(None, {"x": x})[0]
    return result


def _folded(model: onnx.ModelProto, x: Array) -> tuple[onnx.ModelProto, FoldBatchNorm]:
    """The model after the pass, which must compute the same."""
    graph = ir.from_proto(model)
    done = FoldBatchNorm().applied_to(graph)
    after = ir.to_proto(graph)
    onnx.checker.check_model(after, full_check=True)
    wanted, given = _run(model, x), _run(after, x)
    np.testing.assert_allclose(given, wanted, atol=2e-6 * np.abs(wanted).max(), rtol=0)
    return after, done


def _values(model: onnx.ModelProto) -> dict[str, Array]:
    return {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


def _x(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("layer", "weight", "extra", "x", "z"),
    [
        (CONV, (6, 3, 3, 3), {}, "[N,3,5,5]", "[N,6,5,5]"),
        ("y = Conv (x, w, b)", (6, 3, 1, 1), {"b": 6}, "[N,3,5,5]", "[N,6,5,5]"),
        ("y = Conv <group = 3> (x, w)", (6, 1, 1, 1), {}, "[N,3,5,5]", "[N,6,5,5]"),
        ("y = ConvTranspose (x, w, b)", (3, 6, 1, 1), {"b": 6}, "[N,3,5,5]", "[N,6,5,5]"),
        ("y = ConvTranspose <group = 2> (x, w)", (4, 3, 1, 1), {}, "[N,4,5,5]", "[N,6,5,5]"),
        ("y = Gemm <transB = 1> (x, w, b)", (6, 4), {"b": 6}, "[N,4]", "[N,6]"),
        ("y = Gemm <alpha = 2.0, beta = 0.5> (x, w, b)", (4, 6), {"b": 6}, "[N,4]", "[N,6]"),
        ("y = Gemm (x, w, b)", (4, 6), {"b": 1}, "[N,4]", "[N,6]"),
        ("y = Gemm (x, w)", (4, 6), {}, "[N,4]", "[N,6]"),
    ],
)
def test_folds_and_keeps_every_zero(
    layer: str, weight: tuple[int, ...], extra: dict[str, int], x: str, z: str
) -> None:
    arrays = _arrays(*weight, channels=6)
    arrays |= {name: _x(size) for name, size in extra.items()}
    model = _model(f"{layer} {NORM}", arrays, x, z)
    sizes = [3, *(int(size) for size in x.strip("[]").split(",")[1:])]
    after, done = _folded(model, _x(*sizes))
    assert done.changed == ["bn"]
    assert done.kept == {}
    assert [node.op_type for node in after.graph.node] == [layer.split()[2]]
    values = _values(after)
    assert values.keys() == {"w", "w.bias"}
    assert np.array_equal(values["w"] == 0, arrays["w"] == 0)
    assert not np.signbit(values["w"][values["w"] == 0]).any()
    assert not np.array_equal(values["w"], arrays["w"])
    assert done.absorbed >= {"bn.weight", "bn.bias", "bn.mean", "bn.var"}


@pytest.mark.parametrize("sign", [1, -1])
def test_folds_in_a_branch_what_is_whole_there(sign: int) -> None:
    """The convolution before the branches is computed whichever of them is taken."""
    arrays = _arrays(6, 3, 3, 3, channels=6)
    arrays |= {name.replace("bn", "bn2"): value for name, value in arrays.items() if "bn" in name}
    arrays |= {"w2": arrays["w"][::-1].copy(), "zero": np.zeros((), np.float32)}
    norm = NORM.replace("z =", "v =")
    body = f"""u = Conv <pads = [1, 1, 1, 1]> (x, w2) t = ReduceSum <keepdims = 0> (x)
        c = Greater (t, zero) z = If (c) <
            then_branch = g1 () => (float[N,6,5,5] z1) {{ {CONV} {norm} z1 = Relu (v) }},
            else_branch = g2 () => (float[N,6,5,5] z2) {{
                z2 = BatchNormalization (u, bn2.weight, bn2.bias, bn2.mean, bn2.var) }}>"""
    x = np.abs(_x(2, 3, 5, 5)) * np.float32(sign)
    after, done = _folded(_model(body, arrays, "[N,3,5,5]", "[N,6,5,5]"), x)
    assert done.changed == ["bn"]
    assert done.kept == {"bn2": "no convolution or matrix product before it"}
    left, right = (about.g for about in after.graph.node[-1].attribute)
    assert [node.op_type for node in left.node] == ["Conv", "Relu"]
    assert [node.op_type for node in right.node] == ["Constant", "BatchNormalization"]
    assert {"w", "w.bias", "w2"} <= _values(after).keys()


@pytest.mark.parametrize("scale", [0.0, 1e-43, np.inf, np.nan])
def test_stays_where_zeros_would_change(scale: float) -> None:
    arrays = _arrays(6, 3, 1, 1, channels=6)
    arrays["w"][2] = 1.0
    arrays["bn.weight"][2] = scale
    graph = ir.from_proto(_model(f"{CONV} {NORM}", arrays, "[N,3,5,5]", "[N,6,7,7]"))
    done = prepare(graph, {"w"})
    assert done.changed == []
    assert done.kept == {"bn": "w would have other zeros"}
    # Nor does any pass after ours fold it.
    assert [node.op_type for node in graph.graph] == ["Conv", "BatchNormalization"]
    weight = graph.graph.initializers["w"].const_value
    assert weight is not None
    assert np.array_equal(weight.numpy(), arrays["w"])
    assert "bn.weight" in graph.graph.initializers


def test_a_channel_without_weights_is_no_obstacle() -> None:
    arrays = _arrays(6, 3, 3, 3, channels=6)
    arrays["w"][2], arrays["bn.weight"][2] = 0, 0
    _, done = _folded(_model(f"{CONV} {NORM}", arrays, "[N,3,5,5]", "[N,6,5,5]"), _x(2, 3, 5, 5))
    assert done.changed == ["bn"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"y = Relu (x) {NORM}", "no convolution or matrix product before it"),
        (f"{CONV} {NORM.replace('z =', 'u =')} z = Add (u, y)",
         "the output of Conv is used elsewhere too"),
        ((f"{CONV} {NORM.replace('z =', 'u =')} v = Conv <pads = [1, 1, 1, 1]> (u, w) "
         "z = Add (u, v)"), "w is used elsewhere too"),
        (f"a = Abs (w) {CONV.replace('w)', 'a)')} {NORM}", "the weight of Conv is computed"),
        (f"{CONV} a = Abs (bn.bias) {NORM.replace('bn.bias', 'a')}",
         "its parameters, or the bias before it, are computed"),
        (f"s = ReduceSum (x) r = Reshape (s, one) {CONV.replace('w)', 'w, r)')} {NORM}",
         "its parameters, or the bias before it, are computed"),
    ],
)  # fmt: skip
def test_stays_and_says_why(body: str, reason: str) -> None:
    arrays = _arrays(3, 3, 3, 3, channels=3) | {"one": np.array([3])}
    if "ReduceSum" in body:
        arrays["one"] = np.array([1])
    model = ir.from_proto(_model(body, arrays, "[N,3,5,5]", "[N,3,5,5]"))
    before = [node.op_type for node in model.graph]
    done = FoldBatchNorm().applied_to(model)
    assert done.kept == {"bn": reason}
    assert [n.op_type for n in model.graph if n.op_type != "Constant"] == before
    for name in ("w", "bn.bias"):
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        assert np.array_equal(tensor.numpy(), arrays[name])


def test_two_layers_one_after_the_other() -> None:
    arrays = _arrays(4, 3, 3, 3, channels=4)
    second = _arrays(5, 4, 3, 3, channels=5, seed=2)
    arrays["v"] = second.pop("w")
    arrays |= {name.replace("bn", "bn2"): array for name, array in second.items()}
    body = (
        f"{CONV} {NORM.replace('z =', 'u =')} t = Conv <pads = [1, 1, 1, 1]> (u, v) "
        "z = BatchNormalization (t, bn2.weight, bn2.bias, bn2.mean, bn2.var)"
    )
    after, done = _folded(_model(body, arrays, "[N,3,5,5]", "[N,5,5,5]"), _x(2, 3, 5, 5))
    assert done.changed == ["bn", "bn2"]
    assert done.biases == {"w.bias", "v.bias"}
    assert [node.op_type for node in after.graph.node] == ["Conv", "Conv"]


def test_half_precision() -> None:
    arrays = {name: a.astype(np.float16) for name, a in _arrays(6, 3, 3, 3, channels=6).items()}
    model = _model(f"{CONV} {NORM}", arrays, "[N,3,5,5]", "[N,6,5,5]")
    graph = ir.from_proto(model)
    assert FoldBatchNorm().applied_to(graph).changed == ["bn"]
    weight = graph.graph.initializers["w"].const_value
    assert weight is not None
    assert weight.numpy().dtype == np.float16
    assert np.array_equal(weight.numpy() == 0, arrays["w"] == 0)


def test_weights_are_left_as_they_are_by_the_other_passes() -> None:
    arrays = {"w": np.eye(4, 6, dtype=np.float32)}
    body = "t = Transpose <perm = [1, 0]> (w) z = MatMul (x, t)"
    graph = ir.from_proto(_model(body, arrays, "[N,6]", "[N,4]"))
    prepare(graph, {"w"})
    assert list(graph.graph.initializers) == ["w"]
    other = ir.from_proto(_model(body, arrays, "[N,6]", "[N,4]"))
    prepare(other, set())
    assert "w" not in other.graph.initializers  # transposed once and for all
