"""A short run with a benchmark; and whether there is a browser for the tests that need one."""

from __future__ import annotations

from pathlib import Path

import pytest

from st3fx.bench.bench_result import BenchResult, BenchRow, Ratio
from st3fx.commands.train import train_spec
from tests.report.browser import has_browser
from tests.training.runs import folder_of, settings

collect_ignore = [] if has_browser() else ["test_browser.py"]


def bench_row(name: str, median: float, ratio: Ratio | None, *, batch: int = 1) -> BenchRow:
    """A row as a benchmark measures it."""
    return BenchRow(
        name, "onnxruntime 1.31.1", "CPUExecutionProvider", batch, 2, median, 1.2 * median, 0.1,
        1000 / median, ratio, 15_700_000, 512, 16, 0.1, 0.9, 4.8,
    )  # fmt: skip


def bench_result() -> BenchResult:
    """Two variants, the second a little faster."""
    return BenchResult(
        model="net",
        rows=(
            bench_row("dense", 2.0, None),
            bench_row("folded", 1.6, Ratio(1.25, 1.2, 1.31)),
            bench_row("dense", 8.0, None, batch=8),
            bench_row("folded", 8.1, Ratio(0.99, 0.97, 1.0), batch=8),
        ),
        settings={"seconds": 3},
        environment={"cpu": "a processor", "cores": 2},
        command="st3fx bench run/model.st3fx -b 1 -b 8",
        verdict=("folded is faster at batch 1.", "It is not at batch 8 <b>."),
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs, with a benchmark in it. Not to be written into."""
    of = settings(tmp_path_factory.mktemp("report"), sparsity=0.8)
    train_spec(of)
    folder = folder_of(of).path
    bench_result().write(folder / "bench.json")
    return folder
