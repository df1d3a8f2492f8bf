"""The ranges of a model's activations over calibration data, by ONNX Runtime's calibrators.

Each batch is given to the calibrator by itself: whatever its method, no more than one batch's
activations are in memory.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st3fx.errors import QuantizeError
from st3fx.passes.onnx.values import Array
from st3fx.quantization.settings import Settings

Feed = Mapping[str, Array]
"""Values of a file's inputs for one call, by name."""


@dataclass(frozen=True)
class Ranges:
    """What the activations of a model were.

    Attributes:
        lowest: Name of a value -> where its range begins.
        highest: Name of a value -> where it ends.
        samples: How many samples were seen.
    """

    lowest: Mapping[str, float]
    highest: Mapping[str, float]
    samples: int


def find_ranges(
    path: Path, feeds: Iterable[Feed], operators: Collection[str], settings: Settings
) -> Ranges:
    """Run a file over calibration data.

    Args:
        path: The fp32 file; files are written beside it.
        feeds: Calls; dimension 0 of the first input is the batch.
        operators: Types of the operators whose inputs and outputs need a range.
        settings: Which method.

    Raises:
        QuantizeError: When there is no batch, one does not fit the file or is not finite, or an
            activation is not.
    """
    calibrator: Any = None
    samples = 0
    for number, feed in enumerate(feeds):
        check_feed(feed, number)
        with quiet():
            if calibrator is None:
                calibrator = _calibrator(path, operators, settings)
            try:
                calibrator.collect_data(_Reader([feed]))
            except Exception as error:
                raise QuantizeError(_complaint(number, error)) from error
        samples += len(next(iter(feed.values())))
    if calibrator is None:
        raise QuantizeError("the calibration data has no batch: give at least one")
    with quiet():
        data = calibrator.compute_data()
    lowest, highest = {}, {}
    for name, item in data.items():
        low, high = (float(np.min(item.range_value[0])), float(np.max(item.range_value[1])))
        if not np.isfinite((low, high)).all():
            raise QuantizeError(
                f"activation {name} is not finite on the calibration data (from {low} to {high}): "
                "quantize a model that is finite there"
            )
        lowest[name], highest[name] = low, high
    return Ranges(lowest, highest, samples)


def _complaint(number: int, error: Exception) -> str:
    said = " ".join(str(error).split())
    if "is not finite" in said:  # NumPy's word for the range of a histogram
        return (
            f"an activation is not finite on calibration batch {number}: quantize a model that is "
            "finite there"
        )
    return f"calibration batch {number} does not run: {said[:300]}"


def check_feed(feed: Feed, number: int) -> None:
    """Refuse a call without samples, or with values that are not finite.

    Raises:
        QuantizeError: For such a call.
    """
    for name, array in feed.items():
        if array.ndim and not len(array):
            raise QuantizeError(f"calibration batch {number} has no sample in {name}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise QuantizeError(
                f"calibration batch {number} has values in {name} that are not finite: clean the "
                "data"
            )


BINS = {"percentile": 2048, "entropy": 512}
"""Bins of a histogram. ONNX Runtime's 128 for entropy are as many as it makes of them, so that
nothing is ever cut off there; its search in 2048 takes a second for each activation."""


def _calibrator(path: Path, operators: Collection[str], settings: Settings) -> Any:
    from onnxruntime.quantization import CalibrationMethod  # noqa: PLC0415 (takes a while)
    from onnxruntime.quantization.calibrate import create_calibrator  # noqa: PLC0415

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    options: dict[str, Any] = {"symmetric": False}
    if settings.calibration in BINS:
        options["num_bins"] = BINS[settings.calibration]
    if settings.calibration == "percentile":
        options["percentile"] = settings.percentile
    return create_calibrator(
        path,
        sorted(operators),
        augmented_model_path=str(path.with_name("augmented.onnx")),
        calibrate_method=methods[settings.calibration],
        use_external_data_format=True,
        extra_options=options,
    )


class _Reader:
    """Some calls, as a calibrator asks for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = list(feeds)

    def get_next(self) -> dict[str, Array] | None:
        """The next call."""
        return dict(self._feeds.pop(0)) if self._feeds else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What ONNX Runtime's quantizer prints and logs is dropped: errors and results say it."""
    root = logging.getLogger()
    # Without a handler, logging.warning() would install one for good.
    handler, level = logging.NullHandler(), root.level
    root.addHandler(handler)
    root.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
