"""Runs files side by side: how far the outputs of one are from those of another.

The measure is the ratio of signal to noise, ``10 log₁₀(Σ y² / Σ (y − ŷ)²)`` decibels over all
calls, where ``y`` is an output in fp32 and ``ŷ`` the same in integers: 6 are one bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from st3fx import runtime
from st3fx.errors import NativeError, QuantizeError, describe
from st3fx.export.write import save_proto
from st3fx.passes.onnx.values import Array
from st3fx.quantization.calibrate import Feed

Run = Callable[[Feed], Mapping[str, Array]]
"""Runs a file: values of its inputs to values of its outputs, by name."""


def opened(path: Path, *, optimized: bool = True) -> Run:
    """A file in the stock ONNX Runtime, as anybody opens it.

    Args:
        path: The file.
        optimized: Whether ONNX Runtime may compute in integers what the file has in real numbers
            between QuantizeLinear and DequantizeLinear.

    Raises:
        QuantizeError: When it cannot be opened; its calls raise it when they fail.
    """
    import onnxruntime  # noqa: PLC0415 (takes a while; the command line must answer at once)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise QuantizeError(f"ONNX Runtime refuses the file: {describe(error)}") from error
    return _run(session)


def opened_sparse(path: Path) -> Run:
    """A file with our kernels.

    Raises:
        QuantizeError: As :func:`opened`.
    """
    try:
        return _run(runtime.session(path))
    except NativeError as error:
        raise QuantizeError(str(error)) from error


def _run(session: Any) -> Run:
    names = [port.name for port in session.get_outputs()]

    def run(feed: Feed) -> Mapping[str, Array]:
        try:
            return dict(zip(names, session.run(None, dict(feed)), strict=True))
        except Exception as error:
            raise QuantizeError(f"the file does not run: {describe(error, limit=300)}") from error

    return run


def opened_model(model: onnx.ModelProto, path: Path, *, optimized: bool = True) -> Run:
    """A model, written to ``path`` on the way; what was there is replaced."""
    copy: Any = onnx.ModelProto()
    copy.CopyFrom(model)
    save_proto(copy, path)
    return opened(path, optimized=optimized)


@dataclass(frozen=True)
class Comparison:
    """How far the outputs of a file are from those in fp32.

    Attributes:
        sqnr: Name of each output of real numbers -> decibels; infinite where both are equal.
        finite: Whether all values are finite.
    """

    sqnr: Mapping[str, float]
    finite: bool

    @property
    def worst(self) -> tuple[str, float | None]:
        """The output with the most noise; without a number where none has real numbers."""
        if not self.sqnr:
            return "", None
        # NaN is the worst of all.
        return min(self.sqnr.items(), key=lambda item: (not math.isnan(item[1]), item[1]))


def loose_outputs(graph: onnx.GraphProto) -> frozenset[str]:
    """Outputs with a size that values decide, as how many objects there are: no input has it."""
    given = {dim.dim_param for each in graph.input for dim in each.type.tensor_type.shape.dim}
    return frozenset(
        each.name
        for each in graph.output
        for dim in each.type.tensor_type.shape.dim
        if not dim.HasField("dim_value") and dim.dim_param not in given - {""}
    )


def compare(
    expected: Sequence[Mapping[str, Array]],
    run: Run,
    feeds: Sequence[Feed],
    loose: Collection[str] = (),
) -> Comparison:
    """Run a file at calls whose outputs are known.

    Args:
        expected: Outputs of each call.
        run: The file.
        feeds: The calls.
        loose: Outputs that are left out where they have another size.

    Raises:
        QuantizeError: When another output has, or the file does not run.
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    finite = True
    for feed, outputs in zip(feeds, expected, strict=True):
        for name, found in run(feed).items():
            wanted = outputs[name]
            if wanted.dtype.kind != "f":
                continue  # classes, positions: there is no noise to be measured
            if wanted.shape != found.shape:
                if name in loose and wanted.ndim == found.ndim:
                    continue
                raise QuantizeError(
                    f"output {name} of the file of integers has the shape {found.shape}, in fp32 "
                    f"{wanted.shape}: what computes its size must stay in fp32 (--keep-fp32)"
                )
            finite = finite and bool(np.isfinite(found).all())
            signal[name] = signal.get(name, 0.0) + float(np.square(wanted, dtype=np.float64).sum())
            error = wanted.astype(np.float64) - found
            noise[name] = noise.get(name, 0.0) + float(np.square(error).sum())
    return Comparison({name: _decibels(signal[name], noise[name]) for name in signal}, finite)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
