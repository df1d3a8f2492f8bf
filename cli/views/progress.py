"""A progress display for what takes longer than a second, on a terminal only."""

from __future__ import annotations

import contextlib
import threading
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from st3fx.cli.views.tables import console as make_console
from st3fx.under_way import listening

DELAY = 1.0
"""Seconds before anything is shown: what is quick leaves the terminal alone."""

STAGES = {
    "look": "reading and comparing digests",
    "load": "building the model",
    "headers": "reading the headers of the shards",
    "threshold": "finding the threshold over the shards",
    "shards": "folding shard by shard",
    "weights": "loading the weights",
    "observe_shapes": "running the model once, without values",
    "observe": "running the model once",
    "discover": "finding the weights that multiply",
    "trace": "capturing graphs",
    "rewrite": "rewriting graphs",
    "verify": "comparing with the original",
    "write": "writing the bundle",
    "count": "counting multiplications",
    "fold": "folding",
    "capture": "exporting the graph",
    "save": "writing the file",
    "lower": "choosing sparse kernels",
    "check": "checking the file",
    "compare": "comparing ONNX Runtime with PyTorch",
    "measure": "compressing, for the sizes",
    "data": "reading the data",
    "ranges": "taking the ranges of activations",
    "rank": "trying each layer in fp32",
    "search": "choosing layers for fp32",
    "finetune": "training in integers",
    "integers": "writing integers",
    "score": "scoring both files",
    "draw": "drawing",
    "dense": "writing the dense counterpart",
}


class Progress:
    """Shows the stage under way on stderr: ``with Progress() as report: report("trace")``."""

    def __init__(
        self, console: Console | None = None, delay: float = DELAY, refresh: float = 12.5,
        *, quiet: bool = False,
    ) -> None:  # fmt: skip
        self._console = console or make_console(stderr=True)
        self._shown = self._console.is_terminal and not quiet
        self._stage = ""
        self._listening = contextlib.ExitStack()
        # Drawing takes time from what is measured: a benchmark asks for fewer pictures a second.
        self._spinner = Spinner("dots", text=Text("starting"))
        # Nothing is redirected. It starts at any time, on a thread: within somebody's redirection
        # it would give stdout back to that one, which is gone by then, and all results with it.
        self._live = Live(
            self._spinner, console=self._console, refresh_per_second=refresh, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._timer = threading.Timer(delay, self._show)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._over = False

    def __call__(self, stage: str) -> None:
        """Say which stage begins."""
        self._stage = STAGES.get(stage, stage)
        # As text: in a string rich would look for its markup.
        self._spinner.update(text=Text(self._stage))

    def _told(self, share: float) -> None:
        """How far the stage is."""
        self._spinner.update(text=Text(f"{self._stage}  {share:4.0%}"))

    def __enter__(self) -> Self:
        if self._shown:
            self._listening.enter_context(listening(self._told))
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._listening.close()
        with self._lock:
            # The timer may have fired a moment ago and be waiting for the lock.
            self._over = True
            self._live.stop()

    def _show(self) -> None:
        with self._lock:
            if not self._over:
                self._live.start()
