"""What the program does to the process that it runs in: its streams, Ctrl-C, and bugs.

Whoever reads may stop (``| head``) and a disk may be full: both are seen where stdout is written
to, whatever prints, and neither is a traceback.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from types import FrameType, TracebackType

from st3fx.cli.output import say
from st3fx.errors import OutputError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""

CLOSED = 141
"""Exit code where nobody reads any more, as shells give it for SIGPIPE."""


class Output(io.TextIOWrapper):
    """Stdout, whose errors are st3fx's.

    Raises:
        OutputError: When it cannot be written, e.g. on a full disk.
        SystemExit: When nobody reads it any more. A training, which listens to SIGTERM, is told so
            by that signal instead, and saves.
    """

    def write(self, text: str) -> int:
        """Write text, which may not be seen by anybody before :meth:`flush`."""
        try:
            return super().write(text)
        except OSError as error:
            _lost(error)
            return len(text)

    def flush(self) -> None:
        """Write what was kept back."""
        try:
            super().flush()
        except OSError as error:
            _lost(error)


def _lost(error: OSError) -> None:
    # What is still kept back goes nowhere, instead of failing again when Python ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    if error.errno != errno.EPIPE:
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.raise_signal(signal.SIGTERM)
    else:
        sys.exit(CLOSED)


def take_streams() -> None:
    """Let stdout be an :class:`Output`, and stderr show whatever is written to it."""
    if sys.stdout is not None:
        sys.stdout = Output(
            sys.stdout.buffer,
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=bool(sys.stdout.line_buffering),
        )
    sys.excepthook = _show_bug


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback as Python prints it, without what steers a terminal."""
    text = "".join(traceback.format_exception(kind, error, trace))
    say(text, err=True, end="")


def on_interrupt(number: int, frame: FrameType | None) -> None:
    """End at once while libraries load, and else raise ``KeyboardInterrupt``.

    Raised within an import it would come out as another error, or not at all: libraries catch what
    their optional parts raise.
    """
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename.startswith("<frozen importlib"):
            if os.isatty(2):
                os.write(2, b"\x1b[?25h\n")  # a spinner hides the cursor
            os._exit(INTERRUPTED)
        inner = inner.f_back
    raise KeyboardInterrupt


def finish(code: object) -> int:
    """Write what is left to be written, and give the exit code.

    Args:
        code: That of the command.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OutputError as error:
        say(f"error: {error}", err=True)
        return 2
    return code if isinstance(code, int) else 0 if code is None else 1
