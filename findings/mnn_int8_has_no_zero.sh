#!/usr/bin/env bash
# MNN 3.6.1: a weight that `mnnconvert` stores in int8 has no zero. Of a weight with 80 % zeros not
# one is zero when the file runs.
#
# Whole numbers are stored with a scale and, if asymmetric, a least value as a float that is added:
# there is no zero point that is a whole number, as in ONNX, OpenVINO and CoreML, where zero stays
# zero. And asymmetric is what comes if nothing is said, though the tool's help has "the default
# weight-quant uses SYMMETRIC quant method", and "default: false" for `--weightQuantAsymmetric`. Of
# 128 x 128 normal values with 80 % zeros, what zeros became against the largest weight:
#
#     --weightQuantBits                          zeros kept   others up to   error of all
#     8                                            0 %        0.25 %          0.98 %
#     8, --weightQuantAsymmetric=1                 0 %        0.25 %          0.98 %, the same
#     8, --weightQuantAsymmetric=0               100 %                        0.51 %
#     4, --weightQuantBlock 32                     5 %        4.33 %         10.90 %
#     4, --weightQuantBlock 32, --hqq              1 %        0.67 %          5.23 %
#     4, --weightQuantBlock 32,
#        --weightQuantAsymmetric=0               100 %                        6.84 %
#
# The default with its additional number for each row is half as exact in 8 bits as the other.
# `--fp16` and no option keep the zeros. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q MNN==3.6.1 onnx==1.23.2 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import pathlib
import subprocess
import sys

import MNN
import numpy as np
import onnx
from MNN import nn
from onnx import helper, numpy_helper

print("MNN", MNN.version())
SIZE, TOOL = 128, str(pathlib.Path(sys.executable).parent / "mnnconvert")
numbers = np.random.default_rng(0)
weight = numbers.normal(size=(SIZE, SIZE)).astype("f")
weight[numbers.random((SIZE, SIZE)) < 0.8] = 0
ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", SIZE]) for name in "xy"]
product = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
initializer = numpy_helper.from_array(weight, "w")
graph = helper.make_graph([product], "one", ends[:1], ends[1:], [initializer])
opset = helper.make_opsetid("", 21)
onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), "float.onnx")


def stored(*options):
    """The size of the converted file, and its weight: the output for the unit matrix."""
    files = ["--modelFile", "float.onnx", "--MNNModel", "file.mnn", "--bizCode", "one"]
    subprocess.run([TOOL, "-f", "ONNX", *files, *options], check=True, capture_output=True)
    settings = {"backend": "CPU", "numThread": 1, "precision": "high"}
    manager = nn.create_runtime_manager((settings,))
    network = nn.load_module_from_file("file.mnn", ["x"], ["y"], runtime_manager=manager)
    unit = np.eye(SIZE, dtype="f").ravel().tolist()
    output = network.forward([MNN.expr.const(unit, [SIZE, SIZE], MNN.expr.NCHW)])[0].read()
    return pathlib.Path("file.mnn").stat().st_size, np.array(output).reshape(SIZE, SIZE)


bits8, bits4 = ("--weightQuantBits", "8"), ("--weightQuantBits", "4", "--weightQuantBlock", "32")
weights, errors = {}, {}
for options, right in (
    ((), 1),
    (("--fp16",), 1),
    (bits8, 0),
    ((*bits8, "--weightQuantAsymmetric=1"), 0),
    ((*bits8, "--weightQuantAsymmetric=0"), 1),
    (bits4, 0.1),
    ((*bits4, "--hqq"), 0.1),
    ((*bits4, "--weightQuantAsymmetric=0"), 1),
):
    size, found = stored(*options)
    weights[options] = found
    at_zero = found[weight == 0]
    kept, largest = np.mean(at_zero == 0), np.abs(at_zero).max() / np.abs(weight).max()
    errors[options] = np.linalg.norm(found - weight) / np.linalg.norm(weight)
    print(f"{' '.join(options) or 'no option'}: {size} bytes, {kept:.1%} of zeros kept,", end=" ")
    print(f"others up to {largest:.2%}, error {errors[options]:.2%}")
    assert kept == right if right in (0, 1) else kept < right
    assert (largest == 0) == (right == 1)
symmetric = (*bits8, "--weightQuantAsymmetric=0")
assert np.array_equal(weights[bits8], weights[*bits8, "--weightQuantAsymmetric=1"])
assert errors[bits8] > 1.5 * errors[symmetric]
said = subprocess.run([TOOL, "--help"], capture_output=True, text=True, check=False)
assert "the default weight-quant uses SYMMETRIC" in said.stdout + said.stderr
PY
cd "$folder"
"$folder/venv/bin/python" "$folder/run.py" | grep -v "^MNN use\|^The device supports"
