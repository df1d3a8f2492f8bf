"""Writes a quantized ONNX file with our kernels, and compares it with the one it was made from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from st3fx import runtime
from st3fx.errors import ExportError, NativeError, describe
from st3fx.export.write import weights_beside, write_model
from st3fx.files.atomic import followed, move_into_place, temporary_neighbour
from st3fx.passes.onnx.plain_operators import is_ours
from st3fx.passes.onnx.quant_kernels.lower import lower_quantized
from st3fx.passes.onnx.quant_kernels.quant_report import QuantReport
from st3fx.passes.onnx.values import Array
from st3fx.runtime.open_model import open_model
from st3fx.runtime.operators import SUFFIX

LEAST = 0.02
"""Largest difference that passes in any case, of the largest magnitude of an output."""

_FACTOR = 3.0
"""How much further than ONNX Runtime's own kernels ours may be from the same file in float32."""


@dataclass(frozen=True)
class QuantFile:
    """A quantized ONNX file with our operators.

    Attributes:
        path: The file; ``None`` where no layer gains, and nothing was written.
        kernels: What was chosen for each layer.
        size: Bytes of the file, 0 without one.
        given_size: Bytes of the one that it was made from.
        difference: Largest difference from that in float32 (ONNX Runtime without optimisations),
            of the largest magnitude of the same output; ``None`` where they were not compared.
        own_difference: The same of ONNX Runtime's own INT8 kernels.
    """

    path: Path | None
    kernels: QuantReport
    size: int
    given_size: int
    difference: float | None = None
    own_difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {
            **dataclasses.asdict(self),
            "path": None if self.path is None else str(self.path),
            "kernels": self.kernels.to_dict(),
        }


def default_name(path: Path) -> str:
    """``model.int8.sparse.onnx`` for ``model.int8.onnx``."""
    return path.name.removesuffix(".onnx") + SUFFIX


def read_quantized(path: Path) -> onnx.ModelProto:
    """A file with its weights.

    Raises:
        ExportError: When it is missing or no ONNX, or has our operators already.
    """
    model = open_model(path, ExportError)
    if any(is_ours(node) for node in model.graph.node):
        raise ExportError(f"{path} has sparse kernels already")
    return model


def write_lowered(
    given: Path,
    path: Path,
    feeds: Sequence[Mapping[str, Array]] = (),
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> QuantFile:
    """Lower a quantized file, and write what it becomes where our kernels gain.

    Both files compute with bytes between layers, which rounding moves to neighbours here and there:
    how far that carries depends on the network. So a difference is measured by ONNX Runtime's own
    INT8 kernels, which may not be much nearer.

    Args:
        given: The quantized file, whoever wrote it.
        path: The file to write; one that is there is replaced once all checks have held.
        feeds: Inputs of some calls, by name, on which both files are compared; none: they are not.
        progress: Called with the name of each stage as it begins.

    Raises:
        ExportError: When the file cannot be read, lowered, written or run, or differs.
    """
    progress("lower")
    path = followed(path)
    model = read_quantized(given)
    size = sum(file.stat().st_size for file in (given, *weights_beside(given)))
    try:
        lowered = lower_quantized(model)
    except Exception as error:
        raise ExportError(f"{given} cannot be lowered: {describe(error)}") from error
    if not lowered.report.operators:
        return QuantFile(None, lowered.report, 0, size)
    differences: tuple[float | None, float | None] = (None, None)
    try:
        with temporary_neighbour(path) as folder:
            part = folder / path.name
            write_model(lowered.model, part)
            _check(part)
            if feeds:
                progress("compare")
                differences = _compare(part, given, feeds)
            files = sorted(folder.iterdir())
            written = sum(file.stat().st_size for file in files)
            # The weights before the file that reads them.
            names = sorted((file.name for file in files), key=lambda name: name == path.name)
            beside = weights_beside(path)
            move_into_place(folder, names, (*beside, path) if beside else ())
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {describe(error)}") from error
    return QuantFile(path, lowered.report, written, size, *differences)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"onnx.checker refuses the lowered graph: {describe(error)}") from error


def _compare(path: Path, given: Path, feeds: Sequence[Mapping[str, Array]]) -> tuple[float, float]:
    """The largest difference of ours, and of ONNX Runtime's own kernels, from the file in float32.

    Raises:
        ExportError: When a session cannot be opened, or the lowered file differs.
    """
    try:
        ours = runtime.session(path, 1)
    except NativeError as error:
        raise ExportError(f"{error}; --no-verify writes the file without running it") from error
    exact, own = (_session(given, optimised=on) for on in (False, True))
    far = near = 0.0
    for feed in feeds:
        wanted = exact.run(None, dict(feed))
        far = max(far, _difference(ours.run(None, dict(feed)), wanted))
        near = max(near, _difference(own.run(None, dict(feed)), wanted))
    if not far <= max(LEAST, _FACTOR * near):
        raise ExportError(
            f"with our kernels an output differs by {far:.2g} of its largest magnitude, with ONNX "
            f"Runtime's own by {near:.2g}: no file is left"
        )
    return far, near


def _session(path: Path, *, optimised: bool) -> ort.InferenceSession:
    """Without optimisations conversions stay where they are, and all between them is float32."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime refuses {path}: {describe(error)}") from error


def _difference(outputs: Sequence[Any], wanted: Sequence[Any]) -> float:
    """The largest, of the largest magnitude of its output; infinite where other places are finite.

    Outputs of whole numbers, and those that have as many places as the data say (indices, labels,
    what was detected), tell nothing: one step of rounding can exchange two of them.
    """
    found = 0.0
    for output, exact in zip(outputs, wanted, strict=True):
        ours, theirs = np.asarray(output), np.asarray(exact)
        if ours.ndim != theirs.ndim:
            return math.inf
        if theirs.dtype.kind != "f" or ours.shape != theirs.shape:
            continue
        finite = np.isfinite(theirs)
        if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
            return math.inf
        if not np.isfinite(ours[finite]).all():
            return math.inf
        pair = [value[finite].astype(np.float64) for value in (ours, theirs)]
        largest = np.abs(pair[1]).max(initial=0) or 1.0
        found = max(found, float(np.abs(pair[0] - pair[1]).max(initial=0) / largest))
    return found
