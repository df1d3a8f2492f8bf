"""The picture of a run: loss, accuracy, sparsity over steps, and what is left of each layer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st3fx.files.atomic import replace_file
from st3fx.training.report import TrainResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, TEST, GOAL, BAR = "#9db4c0", "#1d6996", "#e17c05", "#38a6a5"

_MAX_LABELS = 60
"""Layers whose names fit beside their bars; of more, every second, third, ... is named."""


def draw_curves(rows: Sequence[dict[str, Any]], result: TrainResult, path: Path) -> None:
    """Write the picture as a PNG.

    Args:
        rows: Of the log.
        result: Of the run.
        path: The file; one that is there is replaced.

    Raises:
        OSError: When it cannot be written.
    """
    # Not pyplot, which would look for a screen and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (takes a second)
    from matplotlib.figure import Figure  # noqa: PLC0415

    height = min(16.0, max(7.5, 3.0 + 0.14 * len(result.layers)))
    figure = Figure(figsize=(12, height), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(3, 2, width_ratios=(1, 1))
    train = [row for row in rows if row["kind"] == "train"]
    tests = [row for row in rows if row["kind"] == "eval"]
    _loss(figure.add_subplot(grid[0, 0]), train, tests)
    _accuracy(figure.add_subplot(grid[1, 0]), train, tests)
    _sparsity(figure.add_subplot(grid[2, 0]), train, result)
    _layers(figure.add_subplot(grid[:, 1]), result)
    figure.suptitle(
        f"{result.name}: {100 * result.scores.top1:.1f} % top-1 at {100 * result.sparsity:.1f} % "
        "sparsity",
        fontsize=14,
        fontweight="bold",
    )
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    replace_file(path, lambda file: file.write(picture.getvalue()))


def _loss(axes: Axes, train: list[dict[str, Any]], tests: list[dict[str, Any]]) -> None:
    _line(axes, train, "loss", TRAIN, "training")
    _line(axes, tests, "loss", TEST, "test", marker="o")
    _finish(axes, "loss")
    values = [row["loss"] for row in (*train, *tests)]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")


def _accuracy(axes: Axes, train: list[dict[str, Any]], tests: list[dict[str, Any]]) -> None:
    _line(axes, train, "accuracy", TRAIN, "training", scale=100)
    _line(axes, tests, "top1", TEST, "test", scale=100, marker="o")
    best = [row for row in tests if row["best"]]
    if best:
        step, top1 = best[-1]["step"], 100 * best[-1]["top1"]
        axes.plot([step], [top1], "o", color=GOAL, markersize=8, label=f"best, {top1:.1f} %")
    _finish(axes, "top-1 accuracy, %")


def _sparsity(axes: Axes, train: list[dict[str, Any]], result: TrainResult) -> None:
    if result.target is not None:
        axes.axhline(100 * result.target, color=GOAL, linestyle=":", label="target")
    wanted = [row for row in train if row["wanted"] is not None]
    _line(axes, wanted, "wanted", GOAL, "schedule", scale=100, linewidth=4, alpha=0.35)
    _line(axes, train, "sparsity", TEST, "measured", scale=100)
    axes.set_ylim(0, 103)
    axes.set_xlabel("optimizer step")
    _finish(axes, "sparsity, %")


def _layers(axes: Axes, result: TrainResult) -> None:
    names, shares = list(result.layers), [100 * share for share in result.layers.values()]
    places = range(len(names))
    axes.barh(places, shares, color=BAR, height=0.8 if len(names) < 60 else 1.0)
    axes.axvline(100 * result.sparsity, color=GOAL, linestyle=":", label="all sites")
    step = -(-len(names) // _MAX_LABELS)
    axes.set_yticks(list(places)[::step], names[::step], fontsize=8 if len(names) < 40 else 7)
    axes.invert_yaxis()
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    if len(names) <= _MAX_LABELS:
        for place, share in zip(places, shares, strict=True):
            inside = share > 12
            axes.text(
                share - 1 if inside else share + 1,
                place,
                f"{share:.1f}",
                va="center",
                ha="right" if inside else "left",
                fontsize=7,
                color="white" if inside else "black",
            )
    axes.set_xlabel("zeros, %")
    _finish(axes, "", grid="x")
    axes.set_title("final sparsity of each layer", fontsize=11, loc="left")


def _line(
    axes: Axes, rows: list[dict[str, Any]], key: str, color: str, label: str, *,
    scale: float = 1.0, **style: Any,
) -> None:  # fmt: skip
    if rows:
        x = [row["step"] for row in rows]
        axes.plot(x, [scale * row[key] for row in rows], color=color, label=label, **style)


def _finish(axes: Axes, title: str, *, grid: str = "both") -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(visible=True, axis=grid, alpha=0.25)  # type: ignore[arg-type]
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
