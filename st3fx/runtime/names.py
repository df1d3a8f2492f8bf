"""Names of files with sparse operators."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".sparse.onnx"


def sparse_path(plain: Path) -> Path:
    """Where the sparse form of a plain ONNX file is written: ``model.sparse.onnx`` beside it."""
    return plain.with_name(plain.name.removesuffix(".onnx") + SUFFIX)
