#!/usr/bin/env bash
# onnx 1.23.2: a file with a `sparse_initializer`, which onnx itself defines, passes `check_model`
# and little else in the package.
#
# One MatMul, its weight of 8 x 8 stored dense, as `sparse_initializer`, or as `sparse_value` of a
# Constant. onnxruntime 1.32.0 runs the three with the same result; onnx's own tools:
#
#                               dense   sparse_initializer          sparse_value
#     check_model               ok      ok                          ok
#     check_model, full_check   ok      wrong rank (0)              ok
#     infer_shapes, strict      ok      wrong rank (0)              ok
#     ReferenceEvaluator        ok      no "data_location" field    unexpected type SparseTensor
#     convert_version to 22     ok      Input w is undefined!       Sparse tensors not supported.
#     extract_model             ok      must be 0                   ok
#     to_text, parse_model      ok      the weight is left out      ParseError
#
# The reference evaluator, which says what operators mean, reads neither sparse form, and the text
# drops the weight without a word. The errors sound like faults of the file, and are none: who has
# such a file makes its weights dense before using anything of this. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
weight = np.zeros((8, 8), np.float32)
weight[np.arange(8), (3 * np.arange(8)) % 8] = np.arange(1, 9)
unit = np.eye(8, dtype="f")


def model(form):
    """One MatMul with its weight in this form."""
    at = np.flatnonzero(weight).astype(np.int64)
    values = numpy_helper.from_array(weight.ravel()[at], "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(at, "places"), [8, 8])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    dense, sparses = [], []
    if form == "dense":
        dense = [numpy_helper.from_array(weight, "w")]
    elif form == "sparse_initializer":
        sparses = [sparse]
    else:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 8]) for n in "xy"]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], dense, sparse_initializer=sparses)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def runs(made):
    """Whether onnxruntime's result is the weight."""
    session = onnxruntime.InferenceSession(made.SerializeToString())
    return np.array_equal(session.run(None, {"x": unit})[0], weight)


def extract(made):
    onnx.save(made, "whole.onnx")
    onnx.utils.extract_model("whole.onnx", "part.onnx", ["x"], ["y"])
    return runs(onnx.load("part.onnx"))


def infer(made):
    return runs(onnx.shape_inference.infer_shapes(made, strict_mode=True))


def text(made):
    """Whether the text form can be read, and the result is the weight."""
    return runs(onnx.parser.parse_model(onnx.printer.to_text(made)))


def reference(made):
    return np.array_equal(ReferenceEvaluator(made).run(None, {"x": unit})[0], weight)


STEPS = {
    "onnxruntime": runs,
    "check_model": lambda made: onnx.checker.check_model(made) is None,
    "check_model, full": lambda made: onnx.checker.check_model(made, full_check=True) is None,
    "infer_shapes, strict": infer,
    "ReferenceEvaluator": reference,
    "convert_version": lambda made: runs(onnx.version_converter.convert_version(made, 22)),
    "extract_model": extract,
    "text and back": text,
}
EXPECTED = {
    "sparse_initializer": {
        "check_model, full": "wrong rank (0)",
        "infer_shapes, strict": "wrong rank (0)",
        "ReferenceEvaluator": 'has no "data_location" field',
        "convert_version": "Input w is undefined!",
        "extract_model": "len_sparse_initializer is 1",
        "text and back": "Node input 'w' is not a graph input",
    },
    "sparse_value": {
        "ReferenceEvaluator": "unexpected type",
        "convert_version": "Sparse tensors not supported.",
        "text and back": "ParseError",
    },
}
for form in ("dense", "sparse_initializer", "sparse_value"):
    for name, step in STEPS.items():
        expected = EXPECTED.get(form, {}).get(name)
        try:
            good, said = step(model(form)), ""
        except Exception as error:
            good, said = False, " ".join(str(error).split())
        print(f"{form}, {name}: {'ok' if good else said[:90]}")
        assert good == (expected is None)
        assert expected is None or expected in said
written = onnx.printer.to_text(model("sparse_initializer"))
print(" ".join(written.split()))
assert "MatMul (x, w)" in written
assert "w =" not in written
PY
cd "$folder"
"$folder/venv/bin/python" "$folder/run.py"
