"""Prepares an ONNX file for calls by OpenVINO, where it is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from st3fx.bench.variant import Array, Mark, Prepared

PREPARE = f"{__name__}:prepare"
KINDS = ("f32", "bf16")
"""What it computes in."""

WITHOUT_AMX = "AVX512_CORE_VNNI"
"""The newest instructions before AMX, as oneDNN names them, which OpenVINO computes by."""


def has_amx() -> bool:
    """Whether this CPU multiplies tiles of 8-bit integers."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and " amx_int8" in cpu.read_text()


def prepare(
    inputs: Sequence[Array],
    threads: int,
    mark: Mark,
    *,
    path: str,
    kind: str,
    newest: str | None = None,
) -> Prepared:
    """Compile a file and bind inputs to it, in their order.

    Args:
        inputs: Values.
        threads: For one call.
        mark: Called before the file is opened.
        path: The file.
        kind: One of ``KINDS``.
        newest: The newest instructions to use, as oneDNN names them; all of the CPU's where
            ``None``. Holds for the process.
    """
    if newest is not None:  # read once, by the first model
        os.environ["ONEDNN_MAX_CPU_ISA"] = newest
    import openvino  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415

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


def quantized(path: Path, inputs: Sequence[Array], output: Path, *, transformer: bool) -> Path:
    """Write a file as OpenVINO's INT8, by NNCF's quantization after training.

    Args:
        path: An ONNX file.
        inputs: Values of its only input, one call each, to calibrate on.
        output: Where to: ``NAME.xml``, and ``NAME.bin`` beside it.
        transformer: Whether it is one, for which NNCF has rules of its own.
    """
    import nncf  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415
    import openvino.passes  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415

    model = openvino.Core().read_model(path)
    # NNCF takes no weight for one behind a transposition, which is in a file of linear layers.
    manager = openvino.passes.Manager()
    manager.register_pass(openvino.passes.ConstantFolding())
    manager.run_passes(model)
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    done = nncf.quantize(
        model, nncf.Dataset(list(inputs)), subset_size=len(inputs), model_type=kind,
        preset=nncf.QuantizationPreset.MIXED,
    )  # fmt: skip
    openvino.save_model(done, output)
    return output
