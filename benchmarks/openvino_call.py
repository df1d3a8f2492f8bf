"""Prepares an ONNX file for calls by OpenVINO, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence

from st3fx.bench.variant import Array, Mark, Prepared

PREPARE = f"{__name__}:prepare"
KINDS = ("f32", "bf16")
"""What it computes in."""


def prepare(inputs: Sequence[Array], threads: int, mark: Mark, *, path: str, kind: str) -> Prepared:
    """Compile a file and bind inputs to it, in their order.

    Args:
        inputs: Values.
        threads: For one call.
        mark: Called before the file is opened.
        path: The file.
        kind: One of ``KINDS``.
    """
    import openvino  # type: ignore[import-not-found]  # noqa: PLC0415

    core = openvino.Core()
    mark()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": kind,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(path, "CPU", settings).create_infer_request()
    values = list(inputs)
    return Prepared(lambda: request.infer(values), f"openvino {openvino.__version__}")
