#!/usr/bin/env bash
# coremltools 9.0: `palettize_weights` of a weight with 80 % zeros keeps none of them. k-means makes
# each of the 16 values of the palette the mean of a group, and the group of the zeros has some small
# values too: the palette has 0.0000145 in it, and no 0. `joint_compression=True`, which is there for
# sparse weights, does not change this by itself.
#
# Who calls `prune_weights` before, so that the zeros are stored as such, keeps them. But then
# `palettize_weights` and `linear_quantize_weights` do nothing, without a word, unless
# `joint_compression=True` is given. 128 x 128 normal values, times 0.05, 80 % of them set to zero:
#
#                                                     zeros kept   error   form of the weight
#     palettize, 4 bits, k-means                        0 %        9.8 %   palette
#     the same, joint_compression=True                  0 %        9.8 %   palette
#     prune, palettize                                100 %        0       sparse, float32
#     prune, palettize, joint_compression=True        100 %        9.8 %   sparse, palette
#     quantize, 8 bits                                100 %        0.5 %   int8
#     prune, quantize                                 100 %        0       sparse, float32
#     prune, quantize, joint_compression=True         100 %        0.5 %   sparse, int8
#
# The first two are as large as any palette, but no longer sparse; the third and the sixth are as
# large as after pruning alone. Fails if any of this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q coremltools==9.0 scikit-learn==1.9.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
import logging
import warnings

import coremltools as ct
import numpy as np
import sklearn
from coremltools.converters.mil import Builder
from coremltools.optimize import coreml

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
print("coremltools", ct.__version__, "scikit-learn", sklearn.__version__)
numbers = np.random.default_rng(0)
weight = numbers.normal(size=(128, 128)).astype("f") * np.float32(0.05)
weight[numbers.random(weight.shape) < 0.8] = 0


@Builder.program([Builder.TensorSpec(shape=(4, 128))], opset_version=ct.target.iOS18)
def program(x):
    return Builder.linear(x=x, weight=weight, name="y")


dense = ct.convert(
    program,
    convert_to="mlprogram",
    minimum_deployment_target=ct.target.iOS18,
    compute_precision=ct.precision.FLOAT32,
)


def configuration(operator):
    return coreml.OptimizationConfig(global_config=operator)


PRUNE = configuration(coreml.OpThresholdPrunerConfig(threshold=1e-12, weight_threshold=0))
PALETTE = configuration(coreml.OpPalettizerConfig(mode="kmeans", nbits=4, weight_threshold=0))
INT8 = configuration(coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0))
STEPS = {
    "palettize": (coreml.palettize_weights, PALETTE),
    "quantize": (coreml.linear_quantize_weights, INT8),
}


def seen(model):
    """The operators that hold the weight, the share of zeros kept, the error of the weight."""
    operators = model._mil_program.functions["main"].operations
    forms = [item.op_type for item in operators if item.op_type.startswith("constexpr")]
    (layer,) = (item for item in operators if item.op_type == "linear")
    held = layer.weight
    found = held.val if held.val is not None else held.op.materialized_val_inference()
    kept = np.mean(found[weight == 0] == 0)
    return forms, kept, np.linalg.norm(found - weight) / np.linalg.norm(weight)


pruned = coreml.prune_weights(dense, PRUNE)
SPARSE = "constexpr_sparse_to_dense"
for before, step, joint, expected in (
    ("", "palettize", False, (["constexpr_lut_to_dense"], 0, 0.098)),
    ("", "palettize", True, (["constexpr_lut_to_dense"], 0, 0.098)),
    ("prune", "palettize", False, ([SPARSE], 1, 0)),
    ("prune", "palettize", True, (["constexpr_lut_to_sparse", SPARSE], 1, 0.098)),
    ("", "quantize", False, (["constexpr_blockwise_shift_scale"], 1, 0.005)),
    ("prune", "quantize", False, ([SPARSE], 1, 0)),
    ("prune", "quantize", True, (["constexpr_sparse_blockwise_shift_scale", SPARSE], 1, 0.005)),
):
    run, config = STEPS[step]
    made = run(pruned if before else dense, config, joint_compression=joint)
    forms, kept, error = seen(made)
    print(f"{before or 'only'} {step}, joint {joint}: {forms}, {kept:.0%} kept, {error:.2%} off")
    assert (forms, kept) == expected[:2]
    assert abs(error - expected[2]) < 0.002
made = coreml.palettize_weights(dense, PALETTE)
(table,) = made._mil_program.functions["main"].find_ops(op_type="constexpr_lut_to_dense")
values = np.asarray(table.lut.val).ravel()
print("of the palette's values nearest to 0:", values[np.abs(values).argmin()])
assert 0 < np.abs(values).min() < 1e-3
PY
"$folder/venv/bin/python" "$folder/run.py" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
