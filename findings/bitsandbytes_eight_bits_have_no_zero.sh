#!/usr/bin/env bash
# bitsandbytes 0.50.2 on the CPU: `quantize_blockwise` with its own table of 8 bits turns every 0 into
# a small number, although the table has an exact 0. The four bits of NF4 keep the zero.
#
# `create_dynamic_map()` has its 0 at index 127 and 5.5e-7 next to it. A block with 1 and zeros gives
# code 131 for the zeros, which stands for 2.125e-5: the seven codes nearest to 0 are never used.
# 256 x 256 normal values with 90 % of them set to zero, zeros kept, and the most that came of one:
#
#     quantize_blockwise, 8 bits      0 %, 2.1e-5 of the largest value
#     quantize_4bit, NF4            100 %
#     quantize_4bit, FP4            100 %
#     int8_vectorwise_quant         100 %
#
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q bitsandbytes==0.50.2 torch==2.14.1 numpy==2.4.6
cat >"$folder/run.py" <<'PY'
from importlib.metadata import version

import torch
from bitsandbytes import functional

print("bitsandbytes", version("bitsandbytes"), "torch", torch.__version__)
table = functional.create_dynamic_map()
print("codes 126 to 132 stand for", table[126:133].tolist())
assert table[127] == 0

block = torch.zeros(256)
block[0] = 1
codes, state = functional.quantize_blockwise(block)
read = functional.dequantize_blockwise(codes, state)
print("zeros of a block with a 1 get code", codes[1:].unique().tolist(), "and are", read[1].item())
assert codes[1:].unique().tolist() == [131]
assert 2.1e-5 < read[1] < 2.2e-5

torch.manual_seed(0)
weight = torch.randn(256, 256)
weight[torch.rand(256, 256) < 0.9] = 0
zeros = weight == 0
made = {
    "quantize_blockwise": functional.dequantize_blockwise(*functional.quantize_blockwise(weight)),
    "NF4": functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4")),
    "FP4": functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="fp4")),
    "int8": functional.int8_vectorwise_dequant(*functional.int8_vectorwise_quant(weight.half())[:2]),
}
for name, read in made.items():
    kept = (read[zeros] == 0).float().mean().item()
    largest = (read[zeros].abs().max() / weight.abs().max()).item()
    print(f"{name}: {kept:.0%} of zeros kept, others up to {largest:.1e} of the largest value")
    assert kept == (name != "quantize_blockwise")
PY
CUDA_VISIBLE_DEVICES="" "$folder/venv/bin/python" "$folder/run.py" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
