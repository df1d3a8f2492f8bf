"""Stage *export*: the dense original by ``torch.onnx.export``, the folded model by ours."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import st3fx
from benchmarks.coverage.case import Call, Case

SPARSITY = 0.8


def run(case: Case) -> dict[str, Any]:
    """Whether the original exports and whether the sparse model does, with how far it is off."""
    torch.manual_seed(0)
    model = case.build()
    call = case.inputs(case.batch, False)
    row: dict[str, Any] = {"dense": _dense(model.eval(), call), "ok": False}
    began = time.perf_counter()
    try:
        # Thresholds by layer: one for all layers would empty some of an untrained network.
        method = st3fx.ST3(SPARSITY, normalize="sigma")
        converted, sparsifier = st3fx.convert(
            model, call[0], method, example_kwargs=call[1], verify=False, **case.options
        )
        sparsifier.set_sparsity(SPARSITY)
        folded = st3fx.fold(converted, inplace=True)
        with tempfile.TemporaryDirectory() as folder, _quiet():
            result = st3fx.export_onnx(
                folded, call[0], Path(folder) / "model.onnx", example_kwargs=call[1]
            )
    except Exception as error:  # noqa: BLE001 - what stopped it is the row's figure
        return {**row, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    relative = max(item.relative for item in result.parity)
    return {
        **row,
        "ok": True,
        "relative": float(f"{relative:.2g}"),
        "zeros": round(result.zeros.sparsity, 4),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _dense(model: nn.Module, call: Call) -> bool:
    """Whether torch's own exporter takes the original at all."""
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(model, call[0], kwargs=call[1], dynamo=True, verbose=False)
    except Exception:  # noqa: BLE001 - whatever the exporter raises
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
