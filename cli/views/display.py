"""How a run looks while it trains: a live panel on a terminal, else lines of its log."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from st3fx.cli.views.progress import STAGES
from st3fx.cli.views.tables import console as make_console
from st3fx.cli.views.words import (
    Clock,
    epoch_of,
    goal,
    headline,
    meter,
    number,
    percent,
    score_line,
    spark,
)

if TYPE_CHECKING:
    from st3fx.training.report import EvalRow, Outline, TrainRow


class PlainReport:
    """One line per row of the log."""

    def __init__(self, file: TextIO) -> None:
        self._out = make_console(file)
        self._clock = Clock()
        self._outline: Outline | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close nothing: nothing is open."""

    def stage(self, name: str) -> None:
        """Show nothing."""

    def begin(self, outline: Outline) -> None:
        """The run in one line."""
        self._outline = outline
        self._clock.start(outline)
        self._line("; ".join(headline(outline)))

    def step(self, step: int) -> None:
        """Counted for the time that is left."""
        self._clock.step = step

    def train(self, row: TrainRow) -> None:
        """The numbers of a row."""
        assert self._outline is not None
        parts = [
            f"epoch {epoch_of(row, self._outline)}/{self._outline.epochs}",
            f"step {row.step}/{self._outline.steps}",
            f"loss {row.loss:.4f}",
            f"accuracy {percent(row.accuracy)}",
            f"sparsity {percent(row.sparsity)} of {goal(self._outline)}",
            f"threshold {number(row.threshold)}",
            f"lr {row.lr:.4g}",
            f"{row.rate:,.0f} images/s",
            f"{self._clock.left()} left",
        ]
        self._line("  ".join(parts))

    def evaluation(self, row: EvalRow) -> None:
        """What the epoch scored."""
        assert self._outline is not None
        self._line(f"epoch {row.epoch}/{self._outline.epochs}  {score_line(row)}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._line(f"note: {text}")

    def _line(self, text: str) -> None:
        self._out.print(text, soft_wrap=True)

    def end(self) -> None:
        """Close nothing: nothing is open."""


STAGE_NAMES = {
    **STAGES,
    "data": "reading the data",
    "prepare": "preparing",
    "save": "saving",
    "final": "evaluating the final model",
    "evaluate": "evaluating",
    "write": "folding and writing",
}


def make_report(file: TextIO) -> LiveReport | PlainReport:
    """What fits ``file``: a live panel for a terminal, plain lines for anything else."""
    console = make_console(file)
    return LiveReport(console) if console.is_terminal else PlainReport(file)


class LiveReport:
    """A panel that stays at the foot of the terminal, with a line for each epoch above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = Clock()
        self._outline: Outline | None = None
        self._row: TrainRow | None = None
        self._losses: deque[float] = deque(maxlen=16)
        self._accuracies: deque[float] = deque(maxlen=16)
        self._stage = "starting"
        self._spinner = Spinner("dots")
        # Twice a second: drawing takes time from training on a machine with few cores.
        self._live = Live(
            console=console, refresh_per_second=2, transient=True, get_renderable=self._render
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the panel away."""
        self._live.stop()

    def stage(self, name: str) -> None:
        """Say beside the spinner what is under way."""
        self._stage = STAGE_NAMES.get(name, name)

    def begin(self, outline: Outline) -> None:
        """The run in one line, then the panel."""
        self._clock.start(outline)
        self._outline = outline
        self._stage = ""
        first, second = headline(outline)
        self._console.print(Text(first, style="bold"))
        self._console.print(Text(second, style="dim"))

    def step(self, step: int) -> None:
        """Move the bar; it is drawn with the next refresh."""
        self._clock.step = step

    def train(self, row: TrainRow) -> None:
        """Show the numbers from the next refresh on."""
        self._row = row
        self._losses.append(row.loss)
        self._accuracies.append(row.accuracy)

    def evaluation(self, row: EvalRow) -> None:
        """A line that stays."""
        self._stage = ""
        line = Text(f"epoch {row.epoch:>{len(str(self._epochs))}}/{self._epochs}  ", style="dim")
        line.append(score_line(row), style="bold green" if row.best else "default")
        self._console.print(line)

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(f"note: {text}", style="yellow"), soft_wrap=True)

    def end(self) -> None:
        """Back to stages."""
        self._outline = None

    @property
    def _epochs(self) -> int:
        return self._outline.epochs if self._outline is not None else 0

    def _render(self) -> RenderableType:
        if self._outline is None:
            return _beside(self._spinner, self._stage)
        outline, step = self._outline, self._clock.step
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(
            Text(f"step {step:,}/{outline.steps:,}"),
            ProgressBar(total=outline.steps, completed=step),
            Text(f"{step / outline.steps:4.0%}  {self._clock.left()} left"),
        )
        return Panel(
            Group(bar, *self._numbers(outline)),
            title=Text(f"{outline.name} on {outline.data}", style="bold"),
            title_align="left",
            subtitle=Text(self._stage) if self._stage else None,
            subtitle_align="right",
            border_style="cyan",
            # The terminal's echo of Ctrl-C finds room, and does not shift what is to be erased.
            width=self._console.width - 2,
        )

    def _numbers(self, outline: Outline) -> list[RenderableType]:
        row = self._row
        if row is None:
            return [Text("waiting for the first row of numbers", style="dim")]
        grid = Table.grid(padding=(0, 2), expand=True)
        for _ in range(2):
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(no_wrap=True, ratio=1)
        sparsity = Text.assemble(
            (percent(row.sparsity), "bold"),
            (f" of {goal(outline)} ", "dim"),
            (meter(row.sparsity / (outline.target or 1), 7), "magenta"),
        )
        loss = Text.assemble((f"{row.loss:.4f} ", "bold"), (spark(self._losses), "cyan"))
        accuracy = Text.assemble(
            (f"{percent(row.accuracy)} ", "bold"), (spark(self._accuracies), "green")
        )
        epoch = f"{epoch_of(row, outline)} of {outline.epochs}"
        grid.add_row("epoch", epoch, "loss", loss)
        grid.add_row("sparsity", sparsity, "accuracy", accuracy)
        grid.add_row("threshold", number(row.threshold), "rate", f"{row.lr:.4g}")
        grid.add_row("device", outline.device, "speed", f"{row.rate:,.0f} images/s")
        return [grid]


def _beside(spinner: Spinner, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(spinner, Text(text))
    return grid
