"""Settings, and the machine."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from st3fx.bench.variant import BenchSettings
from st3fx.errors import BenchError
from st3fx.runtime import calibration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_sizes": (1, 0)}, "batch size 0: give a number from 1 on"),
        ({"threads": (-1,)}, "threads -1: give a number from 1 on"),
        ({"batch_sizes": (2, 2)}, "batch size .2, 2.: give each number once"),
        ({"seconds": 0.0}, "0.0 seconds: give a time above 0, e.g. 10"),
        ({"seconds": float("nan")}, "nan seconds"),
        ({"iterations": 0}, "0 iterations: give a number from 1 on"),
        ({"warmup": -1.0}, "-1.0 seconds of warm-up"),
        ({"torch": ("jit",)}, "PyTorch mode 'jit': choose eager or compile"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        BenchSettings(**fields)


def test_the_machine_as_json_values() -> None:
    found = calibration.environment()
    assert json.loads(json.dumps(found)) == found
    assert {"st3fx", "onnxruntime", "torch", "numpy", "python", "cpu", "vectors"} <= found.keys()
    assert 1 <= found["cores"] <= found["cpus"] <= (os.cpu_count() or 1)


def test_cores_are_counted_once_for_both_threads_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_available", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(calibration, "_siblings", lambda cpu: f"{cpu % 2},{cpu % 2 + 2}")
    assert calibration.cores() == 2
    monkeypatch.setattr(calibration, "_siblings", str)
    assert calibration.cores() == 4
