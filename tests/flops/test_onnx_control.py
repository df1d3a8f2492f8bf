"""Bodies of If, Loop and Scan: counted as often as they run, or named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import st3fx
from tests.flops.graphs import Array

F32 = np.float32
N = helper.make_node


def half(*shape: int, seed: int = 0) -> Array:
    """A weight of which some scalars are zero."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape) * (random.random(shape) < 0.5)
    return values.astype(F32)


W = half(4, 4)
NONZEROS = int(np.count_nonzero(W))


def body(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
) -> onnx.GraphProto:
    """The graph in an attribute: inputs ``c`` and ``d`` are conditions."""
    return helper.make_graph(
        list(nodes),
        "body",
        [
            helper.make_tensor_value_info(name, TensorProto.BOOL, [])
            if name in ("c", "d")
            else helper.make_empty_tensor_value_info(name)
            for name in inputs
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in (constants or {}).items()],
    )


def report(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    constants: Mapping[str, Any],
    output: str = "y",
    *,
    runs: bool = True,
    opset: int = 17,
) -> st3fx.FlopsReport:
    """The count of a file that ONNX Runtime opens."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path = folder / "m.onnx"
    onnx.save(model, path)
    if runs:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        ort.InferenceSession(str(path), options)
    return st3fx.count_flops(path)


def step(*more: onnx.NodeProto) -> list[onnx.NodeProto]:
    """One multiplication of the state, and go on."""
    return [N("MatMul", ["s", "w"], ["t"]), N("Identity", ["c"], ["go"]), *more]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 5000])
def test_a_loop_runs_as_often_as_its_constant_says(count: int, tmp_path: Path) -> None:
    loop = N("Loop", ["n", "", "x"], ["y", "all"], body=body(
        [*step(), N("Relu", ["t"], ["r"])], ["i", "c", "s"], ["go", "t", "r"]
    ))  # fmt: skip
    after = N("MatMul", ["y", "w"], ["z"])
    found = report(tmp_path, [loop, after], {"x": [3, 4]}, {"w": W, "n": np.array(count)}, "z")
    assert (found.dense_macs, found.sparse_macs) == ((count + 1) * 48, (count + 1) * 3 * NONZEROS)
    assert (found.unknown, found.by_layer["w"].calls) == ({}, count + 1)
    assert found.elementwise_flops == count * 12


def test_what_every_step_adds_a_slice_to_has_a_shape(tmp_path: Path) -> None:
    loop = N("Loop", ["n", "", "x"], ["", "all"], body=body(step(), ["i", "c", "s"],
             ["go", "t", "t"]))  # fmt: skip
    after = N("MatMul", ["all", "w"], ["y"])
    found = report(tmp_path, [loop, after], {"x": [3, 4]}, {"w": W, "n": np.array(6)}, runs=False)
    assert found.sparse_macs == (6 * 3 + 18) * NONZEROS


def test_each_step_may_have_a_weight_of_its_own(tmp_path: Path) -> None:
    stack = np.stack([half(4, 4, seed=seed) for seed in range(5)])
    nodes = [N("Gather", ["stack", "i"], ["w"]), *step()]
    loop = N("Loop", ["n", "", "x"], ["y"], body=body(nodes, ["i", "c", "s"], ["go", "t"]))
    found = report(tmp_path, [loop], {"x": [3, 4]}, {"stack": stack, "n": np.array(4)})
    assert found.sparse_macs == 3 * int(np.count_nonzero(stack[:4]))
    assert found.dense_macs == 4 * 48


def test_a_state_may_grow(tmp_path: Path) -> None:
    nodes = [N("Concat", ["s", "x"], ["t"], axis=0), N("MatMul", ["t", "w"], ["p"]),
             N("Identity", ["c"], ["go"])]  # fmt: skip
    loop = N("Loop", ["n", "", "x"], ["y", ""], body=body(nodes, ["i", "c", "s"],
             ["go", "t", "p"]))  # fmt: skip
    after = N("MatMul", ["y", "w"], ["z"])
    found = report(tmp_path, [loop, after], {"x": [3, 4]}, {"w": W, "n": np.array(3)}, "z",
                   runs=False)  # fmt: skip
    assert found.dense_macs == (6 + 9 + 12 + 12) * 16


def test_a_loop_may_end_by_its_own_counter(tmp_path: Path) -> None:
    nodes = [N("MatMul", ["s", "w"], ["t"]), N("Add", ["k", "one"], ["l"]),
             N("Less", ["l", "end"], ["go"])]  # fmt: skip
    loop = N("Loop", ["", "yes", "x", "zero"], ["y", "last"], body=body(
        nodes, ["i", "c", "s", "k"], ["go", "t", "l"], {"one": np.array(1), "end": np.array(4)}
    ))  # fmt: skip
    constants = {"w": W, "yes": np.array(True), "zero": np.array(0)}
    assert report(tmp_path, [loop], {"x": [3, 4]}, constants).sparse_macs == 4 * 3 * NONZEROS


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_what_has_no_body_is_named(kind: str, tmp_path: Path) -> None:
    damaged = N(kind, {"If": ["n"], "Loop": ["n", "", "x"], "Scan": ["x"]}[kind], ["y"])
    if kind == "Scan":
        damaged.attribute.append(helper.make_attribute("num_scan_inputs", 1))
    found = report(tmp_path, [damaged], {"x": [3, 4]}, {"n": np.array(2)}, runs=False)
    assert found.unknown == {kind: 1}


def test_a_loop_of_an_unknown_length_is_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    nodes = [N("ReduceSum", ["x"], ["sum"], keepdims=0), N("Cast", ["sum"], ["n"], to=7)]
    loop = N("Loop", ["n", "", "x"], ["y", "all"], body=body(step(), ["i", "c", "s"],
             ["go", "t", "t"]))  # fmt: skip
    after = [N("MatMul", ["y", "w"], ["z"]), N("Relu", ["all"], ["r"])]
    found = report(tmp_path, [*nodes, loop, *after], {"x": [3, 4]}, {"w": W}, "z")
    assert found.sparse_macs == 3 * NONZEROS
    # The state keeps its shape, whatever the length; what is stacked has none.
    assert found.unknown == {"Loop": 1, "Relu": 1}


def test_a_loop_that_costs_nothing_is_not_named(tmp_path: Path) -> None:
    nodes = [N("ReduceSum", ["x"], ["sum"], keepdims=0), N("Cast", ["sum"], ["n"], to=7)]
    loop = N("Loop", ["n", "", "x"], ["y"], body=body(
        [N("Identity", ["c"], ["go"]), N("Transpose", ["s"], ["t"])], ["i", "c", "s"], ["go", "t"]
    ))  # fmt: skip
    after = N("MatMul", ["y", "w"], ["z"])
    found = report(tmp_path, [*nodes, loop, after], {"x": [4, 4]}, {"w": W}, "z")
    assert (found.unknown, found.sparse_macs) == ({}, 4 * NONZEROS)


def test_loops_in_loops(tmp_path: Path) -> None:
    inner = N("Loop", ["m", "", "s"], ["t"], body=body(
        [N("MatMul", ["u", "w"], ["v"]), N("Identity", ["d"], ["on"])], ["j", "d", "u"], ["on", "v"]
    ))  # fmt: skip
    outer = N("Loop", ["n", "", "x"], ["y"], body=body(
        [inner, N("Identity", ["c"], ["go"])], ["i", "c", "s"], ["go", "t"]
    ))  # fmt: skip
    constants = {"w": W, "n": np.array(3), "m": np.array(5)}
    found = report(tmp_path, [outer], {"x": [3, 4]}, constants)
    assert (found.sparse_macs, found.unknown) == (15 * 3 * NONZEROS, {})


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scan_has_a_step_for_each_slice(axis: int, tmp_path: Path) -> None:
    nodes = [N("MatMul", ["s", "w"], ["a"]), N("Add", ["a", "e"], ["t"]), N("Relu", ["t"], ["r"])]
    scan = N("Scan", ["start", "x"], ["last", "y"], num_scan_inputs=1, scan_input_axes=[axis],
             scan_output_axes=[axis], body=body(nodes, ["s", "e"], ["t", "r"]))  # fmt: skip
    after = N("MatMul", ["y", "w"], ["z"])
    shape = [6, 3, 4] if axis == 0 else [3, 6, 4]
    constants = {"w": W, "start": np.zeros((3, 4), F32)}
    found = report(tmp_path, [scan, after], {"x": shape}, constants, "z")
    assert (found.sparse_macs, found.unknown) == ((18 + 18) * NONZEROS, {})
    assert {name: op.flops for name, op in found.by_op.items()} == {"add": 72, "relu": 72}


@pytest.mark.parametrize("direction", [0, 1])
def test_a_scan_over_layers_has_the_weights_of_each(direction: int, tmp_path: Path) -> None:
    stack = np.stack([half(4, 4, seed=seed) for seed in range(5)])
    stack[0] = 0
    nodes = [N("MatMul", ["s", "e"], ["t"])]
    scan = N("Scan", ["x", "stack"], ["y"], num_scan_inputs=1, scan_input_directions=[direction],
             body=body(nodes, ["s", "e"], ["t"]))  # fmt: skip
    found = report(tmp_path, [scan], {"x": [3, 4]}, {"stack": stack})
    assert found.sparse_macs == 3 * int(np.count_nonzero(stack))
    assert list(found.by_layer) == ["stack"]


def test_the_first_form_of_scan_is_named(tmp_path: Path) -> None:
    nodes = [N("MatMul", ["s", "w"], ["t"]), N("Add", ["t", "e"], ["r"])]
    scan = N("Scan", ["", "start", "x"], ["last", "y"], num_scan_inputs=1,
             body=body(nodes, ["s", "e"], ["t", "r"]))  # fmt: skip
    before = N("MatMul", ["q", "w"], ["x"])
    constants = {"w": W, "start": np.zeros((2, 3, 4), F32)}
    found = report(tmp_path, [before, scan], {"q": [2, 6, 3, 4]}, constants, runs=False, opset=8)
    assert (found.sparse_macs, found.unknown) == (36 * NONZEROS, {"Scan": 1})


def branches(first: Sequence[onnx.NodeProto], second: Sequence[onnx.NodeProto]) -> dict[str, Any]:
    return {
        "then_branch": body(first, [], [first[-1].output[0]]),
        "else_branch": body(second, [], [second[-1].output[0]]),
    }


ASK = [N("ReduceSum", ["x"], ["sum"], keepdims=0), N("Cast", ["sum"], ["flag"], to=9)]


def test_a_branch_that_nobody_can_decide_is_named_and_its_weight_is_in_no_total(
    tmp_path: Path,
) -> None:
    one, two = [N("MatMul", ["x", "w"], ["a"])], [N("MatMul", ["x", "v"], ["a"])]
    nodes = [*ASK, N("If", ["flag"], ["y"], **branches(one, two)), N("MatMul", ["y", "w"], ["z"])]
    found = report(tmp_path, nodes, {"x": [3, 4]}, {"w": W, "v": half(4, 4, seed=3)}, "z")
    assert (found.sparse_macs, found.unknown) == (3 * NONZEROS, {"If": 1})


def test_branches_that_cost_the_same_are_counted(tmp_path: Path) -> None:
    one = [N("MatMul", ["x", "w"], ["a"], name="p"), N("Sin", ["a"], ["b"])]
    two = [N("Neg", ["x"], ["n"]), N("MatMul", ["n", "w"], ["b"], name="p")]
    same = [N("MatMul", ["x", "w"], ["a"], name="p"), N("Identity", ["a"], ["b"])]
    other = [N("Identity", ["x"], ["n"]), N("MatMul", ["n", "w"], ["b"], name="p")]
    for pair, unknown, macs in (((one, two), {"If": 1}, 0), ((same, other), {}, 3 * NONZEROS)):
        nodes = [*ASK, N("If", ["flag"], ["y"], **branches(*pair))]
        found = report(tmp_path, nodes, {"x": [3, 4]}, {"w": W})
        assert (found.unknown, found.sparse_macs) == (unknown, macs)


def test_what_depends_on_values_inside_of_a_body_is_named_there(tmp_path: Path) -> None:
    nodes = [N("NonZero", ["s"], ["places"]), N("Cast", ["places"], ["f"], to=1),
             N("Relu", ["f"], ["lost"]), N("ReduceSum", ["lost"], ["one"]),
             *step()]  # fmt: skip
    loop = N("Loop", ["n", "", "x"], ["y", "ones"], body=body(nodes, ["i", "c", "s"],
             ["go", "t", "one"]))  # fmt: skip
    found = report(tmp_path, [loop], {"x": [3, 4]}, {"w": W, "n": np.array(3)})
    assert found.sparse_macs == 9 * NONZEROS
    assert found.unknown == {"Relu": 3, "ReduceSum": 3}
