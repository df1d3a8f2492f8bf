"""Names of operators: none is ONNX's, and those of earlier files still run and count."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from st3fx import runtime
from st3fx.passes.onnx.plain_operators import plain_proto
from st3fx.runtime.operators import FORMER, OPERATORS, QUANT_OPERATORS
from tests.runtime import ops

CHANNELS, POSITIONS = 3, (1, 4, 4)

CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "MaxPool": ({"channels": CHANNELS, "kernel_shape": (2, 2)}, ("x",)),
    "AveragePool": ({"channels": CHANNELS, "kernel_shape": (2, 2)}, ("x",)),
    "GlobalAveragePool": ({"channels": CHANNELS}, ("x",)),
    "Add": ({"activation": "relu"}, ("x", "z")),
    "Concat": ({"channels": (CHANNELS, CHANNELS)}, ("x", "z")),
}


def test_no_operator_has_a_name_that_another_library_knows() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    known |= {schema.name for schema in ort_state.get_all_operator_schema()}
    assert {"MaxPool", "FusedConv"} <= known
    assert not known & {*OPERATORS, *QUANT_OPERATORS}


@pytest.mark.parametrize("name", FORMER)
def test_files_of_earlier_versions_run_and_count(name: str) -> None:
    attributes, inputs = CASES[name]
    generator = np.random.default_rng(0)
    feeds = {i: generator.standard_normal((2, CHANNELS, 4, 4), dtype=np.float32) for i in inputs}
    former = ops.Node(name, attributes, inputs)
    now = ops.Node(FORMER[name], attributes, inputs)
    assert np.array_equal(former.run(**feeds), now.run(**feeds))
    plain = [plain_proto(onnx.load_from_string(node.model())) for node in (former, now)]
    assert {node.domain for model in plain for node in model.graph.node} == {""}
    kinds = [[node.op_type for node in model.graph.node] for model in plain]
    assert kinds[0] == kinds[1]
    assert kinds[0][0] == name


def test_the_library_has_what_the_table_has() -> None:
    """One node of each; ONNX Runtime says of which operators it does not know."""
    for name in (*OPERATORS, *QUANT_OPERATORS, *FORMER):
        graph = helper.make_graph(
            [helper.make_node(name, ["x"], ["y"], domain=runtime.DOMAIN)], "graph",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(runtime.DOMAIN, runtime.OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = ort_state.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(runtime.library())
        said = ""
        try:
            ort_state.InferenceSession(options, model.SerializeToString(), False, True)
        except Exception as error:  # noqa: BLE001 (of several classes)
            said = str(error)
        assert "is not a registered function/op" not in said, name
