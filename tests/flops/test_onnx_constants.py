"""Weights behind other nodes: their zeros are those that ONNX Runtime multiplies with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import st3fx
from st3fx.flops import onnx_walk
from tests.flops.graphs import Array

N = helper.make_node
F32 = np.float32
A = np.random.default_rng(0).standard_normal((8, 6)).astype(F32)
A[np.random.default_rng(1).random((8, 6)) < 0.6] = 0


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


Path_ = tuple[Sequence[onnx.NodeProto], dict[str, Array]]
"""Nodes that make the weight ``w``, and constants beside ``a``."""


def paths(opset: int) -> dict[str, Path_]:
    """One for each kind of operator, as the opset has it."""
    axes: dict[str, Any] = {"axes": [1]} if opset < 18 else {}
    more = [] if opset < 18 else ["i"]
    found: dict[str, Path_] = {
        "identity": ([N("Identity", ["a"], ["w"])], {}),
        "transpose": ([N("Transpose", ["t"], ["w"])], {"t": A.T.copy()}),
        "half": ([N("Cast", ["t"], ["w"], to=1)], {"t": A.astype(np.float16)}),
        "reshape": ([N("Reshape", ["t", "i"], ["w"])], {"t": A.reshape(-1), "i": integers(8, 6)}),
        "mask": ([N("Mul", ["b", "m"], ["w"])], {"b": A + (A == 0), "m": (A != 0).astype(F32)}),
        "difference": ([N("Sub", ["b", "c"], ["w"])], {"b": A + 1, "c": np.array([1], F32)}),
        "concatenation": ([N("Concat", ["u", "v"], ["w"], axis=0)], {"u": A[:3], "v": A[3:]}),
        "rows": ([N("Gather", ["a", "i"], ["w"])], {"i": integers(*range(7, -1, -1))}),
        "copies": ([N("Tile", ["t", "i"], ["w"])], {"t": A[:2], "i": integers(4, 1)}),
        "expansion": ([N("Expand", ["t", "i"], ["w"])], {"t": A[:1], "i": integers(8, 6)}),
        "weight norm": (
            [N("ReduceL2", ["a", *more], ["n"], keepdims=1, **axes), N("Add", ["n", "e"], ["m"]),
             N("Div", ["a", "m"], ["w"])],
            {"e": np.array([1e-6], F32), "i": integers(1)},
        ),
        "soft threshold": (
            [N("Abs", ["b"], ["p"]), N("Sub", ["p", "c"], ["q"]), N("Relu", ["q"], ["r"]),
             N("Sign", ["b"], ["s"]), N("Mul", ["r", "s"], ["w"])],
            {"b": A * 3, "c": np.array([1], F32)},
        ),
    }  # fmt: skip
    if opset >= 11:
        places = np.argwhere(A)
        found["scattered"] = (
            [N("ConstantOfShape", ["i"], ["z"]), N("ScatterND", ["z", "p", "v"], ["w"])],
            {"i": integers(8, 6), "p": places.astype(np.int64), "v": A[tuple(places.T)]},
        )
        found["chosen"] = (
            [N("Greater", ["a", "c"], ["q"]), N("Where", ["q", "a", "c"], ["w"])],
            {"c": np.array(0, F32)},
        )
        found["loop"] = (
            [N("Loop", ["i", "", "a"], ["w"], body=helper.make_graph(
                [N("Relu", ["s"], ["t"]), N("Identity", ["c"], ["d"])], "body",
                [helper.make_tensor_value_info("k", TensorProto.INT64, []),
                 helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                 helper.make_tensor_value_info("s", TensorProto.FLOAT, None)],
                [helper.make_empty_tensor_value_info(name) for name in ("d", "t")]))],
            {"i": np.array(3)},
        )  # fmt: skip
    return found


def made(nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], opset: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [*nodes, N("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in {"a": A, **constants}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def multiplied(model: onnx.ModelProto) -> Array:
    """The weight, as ONNX Runtime computes it."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.append(helper.make_empty_tensor_value_info("w"))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(asked.SerializeToString(), options)
    weight: Array = session.run(["w"], {"x": np.zeros((5, 8), F32)})[0]
    return weight


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20])
def test_operators_between_a_constant_and_its_layer(opset: int, tmp_path: Path) -> None:
    for name, (nodes, constants) in paths(opset).items():
        model = made(nodes, constants, opset)
        wanted = int(np.count_nonzero(multiplied(model)))
        onnx.save(model, tmp_path / "m.onnx")
        report = st3fx.count_flops(tmp_path / "m.onnx")
        assert (report.dense_macs, report.sparse_macs) == (240, 5 * wanted), name
        assert report.unknown == {}, name
        (row,) = report.by_layer.values()
        assert (row.parameters, row.nonzeros) == (48, wanted) or name in ("copies", "expansion")


def test_types_that_onnx_runtime_does_not_give_back(tmp_path: Path) -> None:
    """A bfloat16 weight goes through the reference implementation."""
    import ml_dtypes

    constants = {"t": A.astype(ml_dtypes.bfloat16)}
    nodes = [
        N("Transpose", ["t"], ["u"]),
        N("Transpose", ["u"], ["v"]),
        N("Cast", ["v"], ["w"], to=1),
    ]
    onnx.save(made(nodes, constants, 17), tmp_path / "m.onnx")
    assert st3fx.count_flops(tmp_path / "m.onnx").sparse_macs == 5 * int(np.count_nonzero(A))


def test_weights_of_layers_that_read_weights_alone(tmp_path: Path) -> None:
    """``u @ v`` counts as a layer of its own; what reads it has the zeros of its values."""
    u, v = np.ones((8, 2), F32), np.ones((2, 6), F32)
    u[:4] = 0
    model = made([N("MatMul", ["u", "v"], ["w"])], {"u": u, "v": v}, 17)
    onnx.save(model, tmp_path / "m.onnx")
    report = st3fx.count_flops(tmp_path / "m.onnx")
    assert (report.dense_macs, report.sparse_macs) == (96 + 240, 96 + 120)
    model = made([N("Einsum", ["a", "s"], ["w"], equation="ij,j->ij")], {"s": A[7]}, 17)
    onnx.save(model, tmp_path / "m.onnx")
    nonzeros = int(np.count_nonzero(A * A[7]))
    assert st3fx.count_flops(tmp_path / "m.onnx").sparse_macs == 5 * nonzeros


def test_a_constant_that_would_not_fit_is_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [N("Expand", ["t", "i"], ["w"])]
    constants = {"t": A[:1, :1], "i": integers(8, 6)}
    onnx.save(made(nodes, constants, 17), tmp_path / "m.onnx")
    assert st3fx.count_flops(tmp_path / "m.onnx").dense_macs == 240
    monkeypatch.setattr(onnx_walk, "LARGEST", 40)
    report = st3fx.count_flops(tmp_path / "m.onnx")
    assert (report.dense_macs, report.unknown) == (0, {"MatMul with a weight that Expand makes": 1})
