"""Rows and results made up for tests."""

from __future__ import annotations

from typing import Any

from st3fx.bench.bench_result import BenchResult, BenchRow, Ratio


def row(name: str, ratio: tuple[float, float, float] | None = None, **fields: Any) -> BenchRow:
    """A row; ``ratio`` is low, median, high."""
    values: dict[str, Any] = {
        "runtime": "onnxruntime 1.0", "provider": "CPUExecutionProvider", "batch": 1, "threads": 1,
        "median_ms": 2.0, "p95_ms": 2.5, "spread_ms": 0.1, "items_per_second": 500.0,
        "peak_memory": 12_300_000, "iterations": 100, "rounds": 20, "load_seconds": 0.5,
    }  # fmt: skip
    if ratio is not None:
        low, median, high = ratio
        values["ratio"] = Ratio(median, low, high)
    return BenchRow(**{"name": name, "ratio": None, **values, **fields})


def result(*rows: BenchRow, **fields: Any) -> BenchResult:
    """A result with these rows."""
    values: dict[str, Any] = {
        "model": "net",
        "rows": rows or (row("dense"), row("folded", (0.99, 1.0, 1.01), sparsity=0.9, bound=5.0)),
        "settings": {"warmup": 2.0, "dense": "no zeros", "providers": ["CPUExecutionProvider"]},
        "environment": {"cpu": "A Chip", "vectors": ["avx2"], "cores": 2},
        "command": "st3fx bench net",
        "verdict": ("folded is no faster.",),
    }
    return BenchResult(**{**values, **fields})
