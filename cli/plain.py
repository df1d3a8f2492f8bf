"""How a run looks where there is no terminal: one line per row of its log."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console

from st3fx.cli.words import Clock, epoch_of, goal, headline, number, percent, score_line

if TYPE_CHECKING:
    from st3fx.training.report import EvalRow, Outline, TrainRow


class PlainReport:
    """One line per row of the log."""

    def __init__(self, file: TextIO) -> None:
        self._out = Console(file=file, markup=False, highlight=False, soft_wrap=True)
        self._clock = Clock()
        self._outline: Outline | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open."""

    def stage(self, name: str) -> None:
        """Not shown."""

    def begin(self, outline: Outline) -> None:
        """The run in one line."""
        self._outline = outline
        self._clock.start(outline)
        self._out.print("; ".join(headline(outline)))

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
        self._out.print("  ".join(parts))

    def evaluation(self, row: EvalRow) -> None:
        """What the epoch scored."""
        assert self._outline is not None
        self._out.print(f"epoch {row.epoch}/{self._outline.epochs}  {score_line(row)}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._out.print(f"note: {text}")

    def end(self) -> None:
        """Nothing is open."""
