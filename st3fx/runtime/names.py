"""Names of files with sparse operators, and of the plain ones beside them."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".sparse.onnx"
"""Of a file with sparse operators where no name was asked for."""

_PLAIN = ".plain.onnx"


def plain_path(path: Path) -> Path:
    """Where the plain form of a file with sparse operators is written, beside it.

    ``model.onnx`` beside ``model.sparse.onnx``; beside any other name, which is the one that was
    asked for, ``NAME.plain.onnx``.
    """
    if path.name.endswith(SUFFIX):
        return path.with_name(path.name.removesuffix(SUFFIX) + ".onnx")
    return path.with_name(path.name.removesuffix(".onnx") + _PLAIN)
