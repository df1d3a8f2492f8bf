"""Sparse kernels in a benchmark: whether they can be measured, and what a file says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from st3fx import runtime
from st3fx.bench.settings import BenchSettings
from st3fx.errors import NativeError
from st3fx.onnx_passes.plain_operators import is_ours
from st3fx.runtime.example import Shape, example_shapes


def missing(settings: BenchSettings) -> str:
    """Why models have no row with sparse kernels; empty where they have one, or want none."""
    if not settings.sparse_kernels:
        return ""
    if settings.providers[0] != "CPUExecutionProvider":
        return "they run on the CPU alone"
    try:
        runtime.library()
    except NativeError as error:
        return str(error)
    return ""


def is_wanted(settings: BenchSettings) -> bool:
    """Whether a model with zeros gets a row with sparse kernels."""
    return settings.sparse_kernels and not missing(settings)


def verdict(without: Sequence[str], settings: BenchSettings) -> Iterator[str]:
    """Why models with zeros have no row with sparse kernels.

    Args:
        without: Names of those that have none.
        settings: Of the benchmark.
    """
    if without and settings.sparse_kernels:
        reason = missing(settings) or "no layer is expected to gain"
        yield f"No sparse kernels, which skip zeros, for {', '.join(without)}: {reason}."


def has_sparse_operators(path: Path) -> bool:
    """Whether a file has operators of ours."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return any(is_ours(node) for node in nodes)


def noted_shapes(path: Path) -> tuple[Shape, ...]:
    """The sizes of the example, where a file whose image sizes are free notes them."""
    return example_shapes(onnx.load(path, load_external_data=False))
