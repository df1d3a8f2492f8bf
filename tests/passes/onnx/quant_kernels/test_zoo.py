"""Architectures from libraries, quantized by ONNX Runtime: each tensor within one step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.passes.onnx.quant_kernels.agreement import agree
from tests.passes.onnx.quant_kernels.zoo import BUILDERS, quantized

NEEDS = {"bert": "transformers", "yolo": "ultralytics"}
"""Models of libraries that tests do without elsewhere."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILDERS)
def test_every_layer_is_ours_and_every_tensor_agrees(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    model, feeds = quantized(name, tmp_path / "model.onnx")
    result = agree(model, feeds)
    assert [row.reason for row in result.report.rows if not row.is_ours] == []
    _assert_near(result.outputs, result.plain, equal=not any(result.steps.values()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_signed_activations(tmp_path: Path) -> None:
    """ONNX Runtime's default."""
    model, feeds = quantized("resnet18", tmp_path / "model.onnx", signed=True)
    result = agree(model, feeds)
    assert result.report.ours == len(result.report.rows)
    _assert_near(result.outputs, result.plain, equal=not any(result.steps.values()))


def _assert_near(outputs: list[np.ndarray], plain: list[np.ndarray], *, equal: bool) -> None:
    """Where no tensor differs by a step none can at the end; else random networks carry it far."""
    for value, wanted in zip(outputs, plain, strict=True):
        assert np.ptp(wanted) > 0
        if equal:
            np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert np.corrcoef(value.ravel(), wanted.ravel())[0, 1] > 0.97
