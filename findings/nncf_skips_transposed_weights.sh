#!/usr/bin/env bash
# NNCF 3.4.0, OpenVINO 2026.4.1: after `nncf.quantize` a linear layer whose weight stands behind a
# `Transpose` in the ONNX file has inputs in INT8 and the weight in fp32, and nothing says so.
#
# So stand the weights of linear layers in the files of torch's exporter: [outputs, inputs], a
# Transpose, a MatMul. OpenVINO folds it when it compiles a model, but `read_model` keeps it, and NNCF
# then sees a product of two activations: the one gets its FakeQuantize, the weight none, and the layer
# runs in fp32 with the rounding added (BERT-base, 128 tokens, one thread of a Xeon without AMX: 454 ms
# in place of 139). With the weight stored transposed, or after OpenVINO's own `ConstantFolding`, both
# get one. Seen, with layers of 256 x 256:
#
#     the weight                          rounded: input   weight   bytes of the weight
#     stored transposed, MatMul                    yes       yes          65 536
#     Transpose, MatMul                            yes       no          262 144
#     Transpose, MatMul, ConstantFolding           yes       yes          65 536
#
# With either `model_type`. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nncf==3.4.0 openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import logging

import nncf
import numpy as np
import onnx
import openvino
from onnx import helper, numpy_helper
from openvino import passes

logging.getLogger("nncf").setLevel(logging.ERROR)
print("nncf", nncf.__version__, "openvino", openvino.__version__)
SIZE = 256
numbers = np.random.default_rng(0)
weight = numbers.normal(size=(SIZE, SIZE)).astype("f")
samples = [numbers.normal(size=(8, SIZE)).astype("f") for _ in range(4)]


def read(transposed):
    """Two layers, each a MatMul and a Relu, read by OpenVINO."""
    nodes, given = [], "x"
    for layer in "ab":
        factor = f"{layer}.weight"
        if transposed:
            nodes.append(helper.make_node("Transpose", [factor], [f"{layer}.t"], perm=[1, 0]))
            factor = f"{layer}.t"
        nodes.append(helper.make_node("MatMul", [given, factor], [f"{layer}.product"]))
        given = "y" if layer == "b" else f"{layer}.y"
        nodes.append(helper.make_node("Relu", [f"{layer}.product"], [given]))
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [8, SIZE]) for n in "xy"]
    stored = weight.T if not transposed else weight
    weights = [numpy_helper.from_array(stored.copy(), f"{layer}.weight") for layer in "ab"]
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 21)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), "file.onnx")
    return openvino.Core().read_model("file.onnx")


def origin(value):
    """What gives a value, and whether it is rounded on the way."""
    node, rounded = value.get_node(), False
    while node.get_type_name() in ("FakeQuantize", "Transpose", "Convert", "Multiply", "Subtract"):
        rounded |= node.get_type_name() == "FakeQuantize" or node.get_element_type().is_integral()
        node = node.input_value(0).get_node()
    return node, rounded or node.get_element_type().is_integral()


def outcome(model, kind):
    """Of each product: whether its input is rounded, its weight, and the weight's bytes."""
    done = nncf.quantize(model, nncf.Dataset(samples), subset_size=4, model_type=kind)
    found = []
    for node in done.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            (_, x), (constant, w) = origin(node.input_value(0)), origin(node.input_value(1))
            assert constant.get_type_name() == "Constant"
            found.append((x, w, constant.data.nbytes))
    return found


for kind in (None, nncf.ModelType.TRANSFORMER):
    plain, behind, folded = read(False), read(True), read(True)
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(folded)
    for title, model, right in (
        ("stored transposed", plain, (True, True, SIZE * SIZE)),
        ("behind a Transpose", behind, (True, False, 4 * SIZE * SIZE)),
        ("the same, folded", folded, (True, True, SIZE * SIZE)),
    ):
        found = outcome(model, kind)
        print(f"{kind}: {title}: input rounded, weight rounded, bytes: {found}")
        assert found == [right, right], title
PY
cd "$folder"
"$folder/venv/bin/python" "$folder/run.py" 2>/dev/null | grep -v "^INFO\|^WARNING\|Statistics"
