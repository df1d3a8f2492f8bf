"""Numbers and small pieces of text that several views share."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.training.report import EvalRow, Outline, TrainRow

_BARS = "▁▂▃▄▅▆▇█"


class Clock:
    """How long a run will still take, from how long its steps took so far, evaluations included."""

    def __init__(self) -> None:
        self.step = 0
        self._total = 0
        self._first = 0
        self._started = 0.0

    def start(self, outline: Outline) -> None:
        """Begin to count."""
        self._started = time.monotonic()
        self.step = self._first = outline.done
        self._total = outline.steps

    def left(self) -> str:
        """``4:05``, or ``?`` before the first step."""
        done = self.step - self._first
        if done <= 0:
            return "?"
        per_step = (time.monotonic() - self._started) / done
        return duration(per_step * (self._total - self.step))


def headline(outline: Outline) -> tuple[str, str]:
    """The run in two lines: what and where, then how."""
    aim = "" if outline.target is None else f" to {goal(outline)} sparsity"
    done = f", from step {outline.done:,}" if outline.done else ""
    if outline.draw is not None:
        low, high = map(percent, outline.draw)
        aim += f", each step at one drawn from {low} to {high},"
    what = f"{outline.name} on {outline.data}, on {outline.device}, into {outline.folder}"
    how = (
        f"{outline.method}{aim} over {plural(outline.sites, 'site')} with "
        f"{outline.site_parameters:,} of {outline.parameters:,} parameters, "
        f"{plural(outline.epochs, 'epoch')} of "
        f"{plural(outline.steps // outline.epochs, 'step')}{done}"
    )
    return what, how


def score_line(row: EvalRow) -> str:
    """Loss and accuracies of an evaluation."""
    top5 = "" if row.top5 is None else f"  top-5 {percent(row.top5)}"
    best = "  best" if row.best else ""
    return (
        f"test loss {row.loss:.4f}  top-1 {percent(row.top1)}{top5}  "
        f"sparsity {percent(row.sparsity)}{best}"
    )


def goal(outline: Outline) -> str:
    """``90.0 %``, ``90.0 % of the MACs``, or what stands for no target."""
    if outline.target is None:
        return "what it learns"
    macs = " of the MACs" if outline.budget == "macs" else ""
    return f"{percent(outline.target)}{macs}"


def epoch_of(row: TrainRow, outline: Outline) -> int:
    """The epoch under way, 1 for the first."""
    return min(outline.epochs, int(row.epoch - 1e-9) + 1)


def percent(share: float) -> str:
    """``61.7 %``."""
    return f"{share:.1%}".replace("%", " %")


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def duration(seconds: float) -> str:
    """``1:02:03``, ``4:05``, ``0:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def meter(share: float, width: int) -> str:
    """A bar of ``width`` columns, filled by ``share``."""
    filled = round(min(1.0, max(0.0, share)) * width)
    return "━" * filled + "─" * (width - filled)


def spark(values: Collection[float]) -> str:
    """The values as a line of small bars."""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def size_text(size: int) -> str:
    """``152 kB``, ``1.1 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def three_digits(value: float) -> str:
    """``0.0752``, ``28.3``, ``1,088``: three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def shape_text(shape: Sequence[object]) -> str:
    """``64x3x7x7``; a free size has a name, and spaces keep it apart from the sign between."""
    sign = "x" if all(isinstance(size, int) for size in shape) else " x "
    return sign.join(map(str, shape)) or "scalar"
