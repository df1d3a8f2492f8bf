"""Kernels compile for a GPU without one: the interpreter takes what the compiler refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from st3fx.sparsity.gpu import groups, soft
from st3fx.sparsity.threshold import radix

def ptx(kernel, signature, constants):
    names = list(kernel.arg_names)
    given = {(names.index(name),): value for name, value in constants.items()}
    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature={n: types[n] for n in names}, constexprs=given)
    return compile(source, GPUTarget("cuda", 90, 32), {"enable_fp_fusion": False}).asm["ptx"]

table = {"table": "*i64", "smallest": "fp32"}
ptx(soft._soft_kernel, table, {"LONGEST": 2048, "BLOCK": 1024})
ptx(groups._soft_long_kernel, table, {"LONGEST": 2048, "BLOCK": 1024})
memory = {"weight": "*fp32", "out": "*fp32"}
ptx(groups._long_kernel, {**memory, "length": "i32"},
    {"SPREAD": True, "LONGEST": 2048, "BLOCK": 1024})
for size, kept in ((4, 0), (4, 2), (7, 5)):
    kind = {"SIZE": size, "KEPT": kept, "LANES": 128}
    ptx(groups._soft_groups_kernel, table, {**kind, "MOST": 256})
    for spread in (False, True):
        lies = {**memory, "groups": "i64", "extent": "i32", "inner": "i32"}
        text = ptx(groups._measure_kernel, lies, {**kind, "SPREAD": spread})
        assert "fma.rn.f32" not in text and "div.rn.f32" in text and "sqrt.rn.f32" in text
ptx(radix._count_kernel, {"table": "*i64", "prefix": "*i32", "counts": "*i64"},
    {"ABOVE": 20, "SHIFT": 10, "BINS": 1024, "SIZE": 16384, "BLOCK": 2048})
ptx(radix._next_kernel, {"table": "*i64", "score": "*i32", "result": "*i32"},
    {"SIZE": 16384, "BLOCK": 2048})
"""


@pytest.mark.slow
def test_every_kernel_compiles() -> None:
    """Groups with the rounding of the other devices: nothing is fused, nothing approximate."""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
