#!/usr/bin/env bash
# gguf 0.19.0 (the files of llama.cpp): whether a type can hold a zero has nothing to do with its
# number of bits, and nine types cannot, or hardly.
#
# Quantized and read again, 256 x 256 normal values with 80 % of them set to zero, zeros kept:
#
#     Q4_0, Q5_0, Q8_0, MXFP4, TQ1_0, TQ2_0    100 %
#     Q4_1, Q5_1                                 4 %, others up to 4 % and 2 % of the largest value
#
# Types that this package reads and does not write: 2000 blocks of random bits whose scale is 1, the
# least magnitude of any value that they stand for:
#
#     IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S    1
#     IQ4_NL                                    1 (its 16 values have ... -22, -10, 1, 13 ...)
#     IQ1_S                                     0.125
#     Q3_K, Q6_K                                0
#
# The table of the four "non-linear" bits has no zero, as that of NF4 has. Q4_1 and Q5_1 add the least
# value of a block as a float. A sparse model in these types is a dense one. Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gguf==0.19.0 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
from importlib.metadata import version

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

print("gguf", version("gguf"))
numbers = np.random.default_rng(0)
weight = numbers.normal(size=(256, 256)).astype("f")
weight[numbers.random(weight.shape) < 0.8] = 0
zeros = weight == 0
for name in ("Q4_0", "Q5_0", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0", "Q4_1", "Q5_1"):
    kind = GGMLQuantizationType[name]
    at_zero = dequantize(quantize(weight, kind), kind)[zeros]
    kept, largest = np.mean(at_zero == 0), np.abs(at_zero).max() / np.abs(weight).max()
    print(f"{name}: {kept:.1%} of zeros kept, others up to {largest:.1%} of the largest value")
    if name in ("Q4_1", "Q5_1"):
        assert kept < 0.1
        assert largest > 0.01
    else:
        assert kept == 1

ONE = np.frombuffer(np.float16(1).tobytes(), np.uint8)
for name, least in (
    ("IQ2_XXS", 1),
    ("IQ2_XS", 1),
    ("IQ2_S", 1),
    ("IQ3_XXS", 1),
    ("IQ3_S", 1),
    ("IQ4_NL", 1),
    ("IQ1_S", 0.125),
    ("Q3_K", 0),
    ("Q6_K", 0),
):
    kind = GGMLQuantizationType[name]
    blocks = numbers.integers(0, 256, (2000, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    # The scale of a block is a half float, its first or its last two bytes.
    blocks[:, slice(-2, None) if name in ("Q3_K", "Q6_K") else slice(0, 2)] = ONE
    values = np.abs(dequantize(blocks, kind))
    print(f"{name}: least magnitude {values.min()} of {values.size} values")
    assert values.min() == least
PY
"$folder/venv/bin/python" "$folder/run.py"
