"""Keeps a library's warnings, log lines and prints off the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TextIO

_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript",
            "onnx_ir")  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence in this thread: what matters is in the result or in the error.

    Other threads write as ever, a progress display among them.
    """
    saved = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    for logger, _ in saved:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(_Muted(sys.stderr)),
            contextlib.redirect_stdout(_Muted(sys.stdout)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in saved:
            logger.setLevel(level)


class _Muted(io.TextIOBase):
    """A stream that drops what the thread that made it writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()
