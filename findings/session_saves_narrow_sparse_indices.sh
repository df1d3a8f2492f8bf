#!/usr/bin/env bash
# onnxruntime 1.32.0: what a session saves (`optimized_model_filepath`) of a file with sparse weights is
# not valid ONNX: `onnx.checker.check_model` (1.23.2) refuses it.
#
# The format has the places of the values, `indices`, in int64. The session writes them in the least
# type that is enough. Of a weight of ROWS x 2, given as `sparse_initializer` or `sparse_value`:
#
#     ROWS       indices of the file that was read     of the file that was saved
#     8, 60      int64                                 int8
#     300        int64                                 int16
#     70,000     int64                                 int32
#
#     check_model of what was saved: "Sparse tensor indices () must have INT64 type."
#
# So it is without any optimization too (ORT_DISABLE_ALL). onnxruntime itself reads the file. To save
# once what is optimized at each start is usual; whoever checks files before use, or reads them by
# the format's own tools, does not take the result. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

print("onnxruntime", ort.__version__, "onnx", onnx.__version__)


def model(rows, constant):
    """One MatMul with a sparse weight, and the weight."""
    weight = np.zeros((rows, 2), np.float32)
    weight[rows // 2 :: 4] = 1
    at = np.flatnonzero(weight).astype(np.int64)
    values = numpy_helper.from_array(weight.ravel()[at], "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(at, "places"), [rows, 2])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    sizes = {"x": rows, "y": 2}
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in sizes.items()
    ]
    sparses = [] if constant else [sparse]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], sparse_initializer=sparses)
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10), weight


for rows, right in ((8, "INT8"), (60, "INT8"), (300, "INT16"), (70_000, "INT32")):
    for constant in (False, True):
        for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
            made, weight = model(rows, constant)
            onnx.checker.check_model(made)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.optimized_model_filepath = "saved.onnx"
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
            ort.InferenceSession(made.SerializeToString(), options)
            saved = onnx.load("saved.onnx")
            (sparse,) = saved.graph.sparse_initializer
            kind = onnx.TensorProto.DataType.Name(sparse.indices.data_type)
            try:
                onnx.checker.check_model(saved)
            except onnx.checker.ValidationError as error:
                said = str(error)
            else:
                raise SystemExit("the saved file is valid now")
            print(f"{rows} rows, constant {constant}, {level}: {kind}; {said}")
            assert kind == right
            assert "must have INT64 type" in said
            x = np.arange(rows, dtype="f")[None] / rows
            again = ort.InferenceSession("saved.onnx").run(None, {"x": x})[0]
            assert np.allclose(again, x @ weight, rtol=1e-4)
PY
cd "$folder"
"$folder/venv/bin/python" "$folder/run.py"
