"""Random models count alike as they run, as they are exported, and in other words."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import onnx
import pytest

import st3fx
from st3fx.flops.flops_report import Convention, FlopsReport
from tests.flops.random_models import random_model, reworded


def macs(report: FlopsReport) -> tuple[object, ...]:
    return (report.dense_macs, report.sparse_macs, report.unknown, report.weights,
            report.weight_nonzeros)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_all_routes_agree(seed: int, tmp_path: Path) -> None:
    model, x = random_model(seed)
    result = st3fx.export_onnx(
        model, x, tmp_path / "m.onnx", sparse_kernels=True, eliminate_dead_channels=False,
        fixed_batch=True, verify=False,
    )  # fmt: skip
    assert result.sparse is not None
    onnx.save(reworded(onnx.load(result.path), seed), tmp_path / "reworded.onnx")
    for convention in get_args(Convention):
        wanted = st3fx.count_flops(model, x, convention)
        assert wanted.unknown == {}
        for path in (result.path, result.sparse.path, tmp_path / "reworded.onnx"):
            assert macs(st3fx.count_flops(path, convention=convention)) == macs(wanted), path.name
