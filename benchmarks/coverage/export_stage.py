"""Stage *export*: the dense original by ``torch.onnx.export``, the folded model by ours."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

import st3fx
from benchmarks.coverage.case import Call, Case
from benchmarks.coverage.layers import set_layer_sparsity
from st3fx.errors import ExportError

SPARSITY = 0.8

_PACKAGES = f"{Path(torch.__file__).parents[1]}/"
"""Where libraries lie on this machine, which is no figure."""


def run(case: Case) -> dict[str, Any]:
    """Whether the sparse model exports, and how far the file is off.

    ``dense`` says whether torch exports the original. Where ours is exported and no layer has
    taken another's place, torch has just exported the same class with other weights.
    """
    if case.refused:
        return {"ok": False, "dense": False, "error": f"not converted: {case.refused}"}
    torch.manual_seed(0)
    model = case.build()
    call = case.inputs(case.batch, False)
    began = time.perf_counter()
    row: dict[str, Any]
    try:
        converted, sparsifier = st3fx.convert(
            model, call[0], example_kwargs=call[1], verify=False, **case.options
        )
        replaced = any(site.computed for site in sparsifier.plan.sites)
        set_layer_sparsity(converted, sparsifier, SPARSITY)
        row = {"ok": True, **_sparse(st3fx.fold(converted, inplace=True), call)}
    except Exception as error:  # noqa: BLE001 - what stopped it is the row's figure
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        row = {"ok": False, "error": said.replace(_PACKAGES, "")[:300]}
    row["seconds"] = round(time.perf_counter() - began, 1)
    row["dense"] = (row["ok"] and not replaced) or _dense(model.eval(), call)
    return row


def _sparse(folded: nn.Module, call: Call) -> dict[str, Any]:
    """Figures of our export: with a free batch, or with the example's where a model needs that."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        try:
            result = st3fx.export_onnx(folded, call[0], path, example_kwargs=call[1])
        except ExportError as error:
            if "--fixed-batch" not in str(error):
                raise
            result = st3fx.export_onnx(
                folded, call[0], path, example_kwargs=call[1], fixed_batch=True
            )
    return {
        "batch": "free" if result.dynamic_batch else "fixed",
        "constant": any(item.constant for item in result.parity),
        "relative": float(f"{max(item.relative for item in result.parity):.2g}"),
        "zeros": round(result.zeros.sparsity, 4),
    }


def _dense(model: nn.Module, call: Call) -> bool:
    """Whether torch's own exporter makes a file of the original that ONNX Runtime opens."""
    try:
        with _quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            torch.onnx.export(model, call[0], path, kwargs=call[1], dynamo=True, verbose=False)
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - whatever the exporter raises
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
