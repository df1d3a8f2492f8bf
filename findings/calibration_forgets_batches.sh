#!/usr/bin/env bash
# onnxruntime 1.32.0: `quantize_static` with `CalibMaxIntermediateOutputs` N in `extra_options` has
# ranges of the last batches only: those that are left over after every full N.
#
# The option's description says that ranges are computed and merged after each N batches, for the
# same result in less memory. But each N batches are thrown away unread. Five batches, each from
# minus to plus its largest value, and the width of the range that the quantized file has for them:
#
#     largest value of the batches 9, 7, 5, 3, 1
#     option not given             range 18: of all five
#     N = 1                        ValueError: No data is collected.
#     N = 2                        range 2: of the fifth
#     N = 3                        range 6: of the fourth and fifth
#     N = 4                        range 2: of the fifth
#     N = 5                        ValueError: No data is collected.
#     N = 6                        range 18: of all five
#
# There is an error only where N divides the number of batches; otherwise the file is made without a
# word, and clips. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_static

logging.disable(logging.WARNING)
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 8]) for name in "xy"]
weight = numpy_helper.from_array(np.eye(8, dtype="f"), "w")
product = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
graph = helper.make_graph([product], "one", ends[:1], ends[1:], [weight])
opset = helper.make_opsetid("", 21)
onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), "float.onnx")


class Reader:
    """Five batches, each from minus to plus its largest value."""

    def __init__(self):
        self.largest = [9, 7, 5, 3, 1]

    def get_next(self):
        if not self.largest:
            return None
        return {"x": np.linspace(-1, 1, 32, dtype="f").reshape(4, 8) * self.largest.pop(0)}


def width(options):
    """Of the range that the quantized file has for its input, or what is said instead."""
    try:
        quantize_static("float.onnx", "quantized.onnx", Reader(), extra_options=options)
    except ValueError as error:
        return f"ValueError: {error}"
    arrays = {item.name: item for item in onnx.load("quantized.onnx").graph.initializer}
    return round(float(numpy_helper.to_array(arrays["x_scale"])) * 255, 3)


NOTHING = "ValueError: No data is collected."
expected = {None: 18, 1: NOTHING, 2: 2, 3: 6, 4: 2, 5: NOTHING, 6: 18}
for count, right in expected.items():
    found = width({} if count is None else {"CalibMaxIntermediateOutputs": count})
    print("not given:" if count is None else f"N = {count}:", found)
    assert found == right
PY
cd "$folder"
"$folder/venv/bin/python" "$folder/run.py"
