#!/usr/bin/env bash
# onnxruntime 1.32.0: `quantize_static` with `CalibrationMethod.Entropy` gives the ranges of
# `CalibrationMethod.MinMax`, whatever the data (but with `CalibStridedMinMax`).
#
# The method looks for the range whose histogram loses least, so as to cut off what stands far out.
# But its smallest candidate has as many bins as the histogram has (128 of 128): there is just one,
# from the least value to the largest. Scale and zero point of an input in the quantized file:
#
#                                                    MinMax            Entropy
#     80,000 normal values                           0.0362, -4        0.0362, -4
#     the same, the last 8 of them 1000              3.9392, -127      3.9392, -127
#     80,000 values of a Cauchy distribution         408.7354, 87      408.7354, 87
#     the same, negative ones set to 0               63.8960, -128     63.8960, -128
#
# `quantize_static` has no option for the bins: "num_bins" in its `extra_options` is dropped without
# a word. Who builds the calibrator himself (`create_calibrator` with `num_bins` 2048) has the second
# one's range end at 121.1 instead of 1000. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import contextlib
import io
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator

logging.disable(logging.WARNING)
print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 8]) for name in "xy"]
weight = numpy_helper.from_array(np.eye(8, dtype="f"), "w")
product = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
graph = helper.make_graph([product], "one", ends[:1], ends[1:], [weight])
opset = helper.make_opsetid("", 21)
onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), "float.onnx")


class Reader:
    """The data in two batches."""

    def __init__(self, data):
        self.batches = np.split(data, 2)

    def get_next(self):
        return {"x": self.batches.pop(0)} if self.batches else None


def quantized(data, method, **options):
    """Scale and zero point of the input."""
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            "float.onnx",
            "quantized.onnx",
            Reader(data),
            calibrate_method=method,
            extra_options=options,
        )
    arrays = {item.name: item for item in onnx.load("quantized.onnx").graph.initializer}
    scale, zero = (numpy_helper.to_array(arrays[name]) for name in ("x_scale", "x_zero_point"))
    return float(scale), int(zero)


numbers = np.random.default_rng(0)
normal = numbers.normal(size=(10_000, 8)).astype("f")
outliers = normal.copy()
outliers[-1] = 1000
cauchy = numbers.standard_cauchy((10_000, 8)).astype("f")
for name, data in (
    ("normal", normal),
    ("outliers", outliers),
    ("cauchy", cauchy),
    ("cauchy, from 0", np.maximum(cauchy, 0)),
):
    least = quantized(data, CalibrationMethod.MinMax)
    entropy = quantized(data, CalibrationMethod.Entropy)
    option = quantized(data, CalibrationMethod.Entropy, num_bins=2048)
    print(f"{name}: min-max {least}, entropy {entropy}, entropy with num_bins {option}")
    assert least == entropy == option
with contextlib.redirect_stdout(io.StringIO()):
    calibrator = create_calibrator(
        "float.onnx",
        ["MatMul"],
        "augmented.onnx",
        CalibrationMethod.Entropy,
        extra_options={"num_bins": 2048},
    )
    calibrator.collect_data(Reader(outliers))
    end = float(calibrator.compute_data()["x"].range_value[1])
print("outliers, a calibrator with 2048 bins: range ends at", end)
assert end < 200
PY
cd "$folder"
"$folder/venv/bin/python" "$folder/run.py"
