"""Files that mean the same in other words have one normal form, and one count."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import st3fx
from st3fx.errors import FlopsError
from st3fx.passes.onnx.normal_form import normal_form

N = helper.make_node
F32 = np.float32
W = np.array([[1, 0, -0.0, 2], [0, 0, 3, 0]], F32)


def constant(name: str, **value: Any) -> onnx.NodeProto:
    return N("Constant", [], [name], **value)


def model(
    nodes: list[onnx.NodeProto], *, opset: int = 17, **initializers: object
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(made: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(made, path)
    return path


def run(made: onnx.ModelProto) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(made.SerializeToString(), options)
    x = np.arange(10, dtype=F32).reshape(5, 2)
    return list(session.run(None, {"x": x}))


def sparse() -> onnx.SparseTensorProto:
    places = np.flatnonzero(W)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(W.reshape(-1)[places], ""),
        numpy_helper.from_array(places, "places"),
        list(W.shape),
    )


WEIGHTS = {
    "value": [constant("w", value=numpy_helper.from_array(W, "any name"))],
    "sparse_value": [constant("w", sparse_value=sparse())],
    "value_floats": [constant("f", value_floats=W.reshape(-1).tolist()),
                     constant("s", value_ints=[2, 4]), N("Reshape", ["f", "s"], ["w"])],
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_in_a_constant_node_is_a_weight(kind: str, tmp_path: Path) -> None:
    nodes = [*WEIGHTS[kind], constant("two", value_float=2.0), N("MatMul", ["x", "w"], ["p"]),
             N("Mul", ["p", "two"], ["y"])]  # fmt: skip
    report = st3fx.count_flops(saved(model(nodes), tmp_path))
    assert (report.dense_macs, report.sparse_macs) == (40, 15)
    # A single number in a node is no parameter.
    assert (report.weights, report.weight_nonzeros, report.parameters) == (8, 3, 8)


def test_nodes_in_any_order(tmp_path: Path) -> None:
    nodes = [
        constant("w", value=numpy_helper.from_array(W)),
        N("MatMul", ["x", "w"], ["a"]),
        N("Relu", ["a"], ["b"]),
        N("MatMul", ["b", "v"], ["c"]),
        N("Add", ["c", "x"], ["y"]),
    ]
    for seed in range(4):
        shuffled = list(nodes)
        random.Random(seed).shuffle(shuffled)
        made = model(shuffled, v=W.T.copy())
        report = st3fx.count_flops(saved(made, tmp_path))
        assert (report.dense_macs, report.sparse_macs, report.weights) == (80, 30, 16)
        before, after = run(made), run(normal_form(made).model)
        assert np.array_equal(before[0], after[0])


def branch(*nodes: onnx.NodeProto, result: str) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), "branch", [], [helper.make_empty_tensor_value_info(result)]
    )


def reversed_nodes(graph: onnx.GraphProto) -> onnx.GraphProto:
    """ONNX Runtime refuses this in a body, and runs it in the main graph."""
    return helper.make_graph(list(graph.node)[::-1], "reversed", [], list(graph.output))


def test_bodies_too_and_names_that_two_of_them_share(tmp_path: Path) -> None:
    """Both branches call their values alike, and one gives a constant back."""
    then = branch(constant("k", value=numpy_helper.from_array(W)), N("MatMul", ["x", "k"], ["t"]),
                  N("Identity", ["t"], ["r"]), result="r")  # fmt: skip
    other = branch(constant("r", value=numpy_helper.from_array(np.ones((5, 4), F32))), result="r")
    for flag, macs in ((True, 15), (False, 0)):
        nodes = [N("If", ["flag"], ["y"], then_branch=then, else_branch=other)]
        made = model(nodes, flag=np.array(flag))
        before = run(made)
        for attribute in made.graph.node[0].attribute:
            attribute.g.CopyFrom(reversed_nodes(attribute.g))
        report = st3fx.count_flops(saved(made, tmp_path))
        assert (report.sparse_macs, report.parameters) == (macs, 28)
        form = normal_form(made)
        assert len(form.constants) == 2
        assert np.array_equal(run(form.model)[0], before[0])


def test_what_no_file_may_have_is_one_line(tmp_path: Path) -> None:
    circle = [N("Add", ["x", "b"], ["a"], name="first"), N("Relu", ["a"], ["b"], name="second"),
              N("Relu", ["b"], ["y"])]  # fmt: skip
    with pytest.raises(FlopsError, match="nodes of 'graph' depend on each other in a circle"):
        st3fx.count_flops(saved(model(circle), tmp_path))
    twice = [N("Relu", ["x"], ["y"]), N("Neg", ["x"], ["y"])]
    with pytest.raises(FlopsError, match="two nodes give the value 'y'"):
        st3fx.count_flops(saved(model(twice), tmp_path))
    empty = [N("Constant", [], ["w"]), N("MatMul", ["x", "w"], ["y"])]
    with pytest.raises(FlopsError, match="the Constant node 'w' has no value"):
        st3fx.count_flops(saved(model(empty), tmp_path))
