"""Accuracy of every method at every sparsity: ResNet-20 on Fashion-MNIST, one loop for all.

    python -m benchmarks.leaderboard                    # what is missing, then table and picture
    python -m benchmarks.leaderboard --show             # table and picture of what is there
    python -m benchmarks.leaderboard --device cuda      # the full length
    python -m benchmarks.leaderboard --only st3 --sparsity 0.9 --seed 0
    python -m benchmarks.leaderboard --only gmp --sparsity 0.99 --epochs 8   # in a file of its own
    python -m benchmarks.leaderboard --entry "Feather, blocks of 4" --fp32   # in its own, too
    python -m benchmarks.leaderboard --dry-run --entry "ST-3, drawn 50 to 95 %" --seed 0

Without instructions for bfloat16 a CPU emulates it, ten times as slowly as fp32.

Each run is ``st3fx train`` with the settings below, and its row is written as soon as it ends, so
that a stopped benchmark goes on where it was. All methods share everything but what names them;
methods that learn their thresholds need a strength of their own for each sparsity, to be found by
trial on seed 0 (``--only dst --try alpha=4e-4``). One without is left out; for the others the table
shows the sparsity that came of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from benchmarks import record
from st3fx.commands.sweep import sweep
from st3fx.commands.train import train_spec
from st3fx.training.recipes import RECIPES
from st3fx.training.settings import Settings

SPARSITIES = (0.90, 0.95, 0.98, 0.99)
COLUMNS = (0.50, 0.80, *SPARSITIES)
SEEDS = (0, 1, 2)
DRAWN_TO = 0.90
"""Where the training of a drawn sparsity ends."""

LENGTHS: dict[str, dict[str, Any]] = {
    "cpu": {"epochs": 2, "warmup_epochs": 0.2},
    "cuda": {"epochs": 160, "warmup_epochs": 0.0, "channels_last": True},
}
"""The full length is the reference's; a CPU runs a short one."""

DRY: dict[str, Any] = {
    "epochs": 1, "warmup_epochs": 0.1, "data": "fashion-mnist-mini", "precision": "no",
}  # fmt: skip
"""A fifteenth of an epoch of the data that are measured with."""

COMMON: dict[str, Any] = {
    "spec": "st3fx:resnet20",
    "data": "fashion-mnist",
    "batch_size": 128,
    "opt": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    # As the recipe st3-cifar, but for the schedule of the learning rate.
    "weight_decay": 1e-4,
    "norm_weight_decay": 0.0,
    "bias_weight_decay": 0.0,
    "clip_grad": 3.0,
    "sched": "cosine",
    "precision": "bf16",
    "log_interval": 100,
}


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        method: Its name in st3fx.
        settings: What differs from the others'.
        strength: For learned thresholds: the setting that makes it sparser, and its value for each
            sparsity, by length.
        recipes: For the row of our own recipes: the one for each sparsity, by length. It may change
            what the other rows have in common, but for the model, the data and the epochs.
        sparsities: Which of the table's columns it has.
        drawn: Between which sparsities that of each step is drawn. One training is taken to all of
            the columns then (``st3fx sweep``); it ends at 90 %.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    strength: dict[str, dict[float, str]] | None = None
    recipes: dict[str, dict[float, str]] | None = None
    sparsities: tuple[float, ...] = SPARSITIES
    drawn: tuple[float, float] | None = None


STRENGTHS: dict[str, dict[str, dict[float, str]]] = {
    # decay -> sparsity: 0.0095 85.6 %, 0.0107 90.9 %, 0.0125 94.6 %, 0.0165 97.9 %, 0.022 99.1 %.
    "str": {
        "cpu": {
            0.90: "decay=0.0105",
            0.95: "decay=0.0128",
            0.98: "decay=0.0168",
            0.99: "decay=0.0213",
        }
    },
    # alpha -> sparsity: 4e-4 87.1 %, 5.2e-4 91.0 %, 9e-4 95.5 %, 1.5e-3 97.3 %. At 2.2e-3 layers
    # fall below 1 %, where the method resets their thresholds, and 87.6 % is what comes of it.
    "dst": {"cpu": {0.90: "alpha=4.9e-4", 0.95: "alpha=8.6e-4"}},
}
"""Interpolated between trials on seed 0, which the comments give."""

ENTRIES = {
    "ST-3": Entry("st3", sparsities=COLUMNS),
    "ST-3, drawn 50 to 95 %": Entry("st3", sparsities=(0.80, 0.90, 0.95), drawn=(0.50, 0.95)),
    "ST-3, drawn 80 to 95 %": Entry("st3", sparsities=(0.80, 0.90, 0.95), drawn=(0.80, 0.95)),
    "ST-3, blocks of 4": Entry(
        "st3", {"method_options": ("granularity=block:4",)}, sparsities=(0.80, 0.90, 0.95)
    ),
    "ST-3σ, blocks of 4": Entry(
        "st3-sigma", {"method_options": ("granularity=block:4",)}, sparsities=(0.80, 0.90, 0.95)
    ),
    "Feather, blocks of 4": Entry(
        "feather", {"method_options": ("granularity=block:4",)}, sparsities=(0.80, 0.90, 0.95)
    ),
    "ST-3, 2 of 4": Entry("st3", {"method_options": ("granularity=nm:2:4",)}, sparsities=(0.50,)),
    "ST-3σ": Entry("st3-sigma"),
    "Feather": Entry("feather"),
    "GMP": Entry("gmp"),
    # The warm-up is in each cycle, which on a CPU has half an epoch.
    "LRR, 4 cycles": Entry("lrr", {"method_options": ("cycles=4",), "warmup_epochs": 0.05}),
    "RigL": Entry("rigl", sparsities=(0.90, 0.95, 0.98)),
    "GraNet": Entry("granet", sparsities=(0.90, 0.95, 0.98)),
    "AC/DC": Entry("acdc", sparsities=(0.90, 0.95, 0.98)),
    # Two epochs are few steps: at 90 %, seed 0, the public rate of 0.006 gave 77.6, 0.05 80.2.
    "ProbMask": Entry("probmask", {"probability_lr": 0.05}, sparsities=(0.90, 0.95, 0.98)),
    "STR": Entry("str", {"method_options": ("initial=-150",)}, STRENGTHS["str"]),
    "DST": Entry("dst", strength=STRENGTHS["dst"]),
    "our recipe": Entry(
        "recipe",
        recipes={"cpu": {0.90: "short", 0.95: "short", 0.98: "short-sparse", 0.99: "short-sparse"}},
    ),
}


def main() -> None:
    """Run what is missing and show the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=tuple(LENGTHS), default="cpu")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--only", help="one method as st3fx names it, 'dense' or 'recipe'")
    parser.add_argument("--entry", choices=ENTRIES, help="one line of the table")
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--epochs", type=int, help="another length, with a file of its own")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16, with a file of its own")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="one epoch of 4,000 images in fp32, to see that all works; its file is thrown away",
    )  # fmt: skip
    parser.add_argument("--try", dest="trial", help="a method's setting NAME=VALUE; not recorded")
    options = parser.parse_args()
    if options.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            measure(options, DRY, Path(folder) / "leaderboard.json")
        return
    length = dict(LENGTHS[options.device])
    if options.epochs is not None:
        length["epochs"] = options.epochs
    if options.fp32:
        length["precision"] = "no"
    if options.trial:
        tried, share = _entry_of(options.only), options.sparsity or 0.9
        print(json.dumps(run(options.device, length, tried, share, 0, options.trial)[0]))
        return
    epochs = "" if options.epochs is None else f"_{options.epochs}_epochs"
    precision = "_fp32" if options.fp32 else ""
    path = record.RESULTS / f"leaderboard_{options.device}{precision}{epochs}.json"
    measure(options, length, path)


def measure(options: argparse.Namespace, length: dict[str, Any], path: Path) -> None:
    """Run what is wanted and missing in a file of results, and show it.

    Args:
        options: Of the command.
        length: Settings beside those that are common.
        path: The file.
    """
    document = json.loads(path.read_text()) if path.exists() else {"rows": []}
    if not options.show:
        for entry, sparsity, seed in missing(document["rows"], options.device):
            if options.only not in (None, "dense" if entry is None else ENTRIES[entry].method):
                continue
            if options.entry not in (None, entry):
                continue
            if options.sparsity not in (None, sparsity) or options.seed not in (None, seed):
                continue
            rows = run(options.device, length, entry, sparsity, seed)
            document["rows"] += rows
            document["environment"] = record.environment(options.device)
            document["settings"] = {**COMMON, **length}
            record.write(path, document)
            for row in rows:
                print(json.dumps(row), flush=True)
    show(document["rows"])
    draw(document["rows"], path.with_suffix(".png"))


def _entry_of(method: str) -> str:
    return next(name for name, entry in ENTRIES.items() if entry.method == method)


def missing(rows: list[dict[str, Any]], device: str) -> list[tuple[str | None, float, int]]:
    """Runs that have no row yet: all of a seed before the next."""
    there = {(row["entry"], row["asked"], row["seed"]) for row in rows}
    wanted: list[tuple[str | None, float, int]] = []
    for seed in SEEDS:
        wanted.append((None, 0.0, seed))
        pairs = itertools.product(COLUMNS, ENTRIES)
        wanted += [(e, s, seed) for s, e in pairs if _is_ready(ENTRIES[e], device, s)]
    return [item for item in wanted if (item[0] or "dense", item[1], item[2]) not in there]


def _is_ready(entry: Entry, device: str, sparsity: float) -> bool:
    """Whether it is known how to reach a sparsity."""
    if entry.drawn is not None and sparsity != DRAWN_TO:
        return False  # its training gives these, too
    return sparsity in entry.sparsities and all(
        table is None or sparsity in table.get(device, {})
        for table in (entry.strength, entry.recipes)
    )


def run(
    device: str,
    length: dict[str, Any],
    entry: str | None,
    sparsity: float,
    seed: int,
    trial: str | None = None,
) -> list[dict[str, Any]]:
    """Train once, and give a row, of a drawn sparsity one for each column.

    The dense row is ST-3 at sparsity 0, which computes what the model computes.
    """
    settings = {**COMMON, **length, "seed": seed}
    if entry is None:
        settings.update(method="st3", sparsity=0.0)
    else:
        chosen = ENTRIES[entry]
        settings.update(method=chosen.method, **chosen.settings)
        if chosen.recipes is not None:
            settings.update(RECIPES[chosen.recipes[device][sparsity]])
        if chosen.strength is not None:
            strength = trial or chosen.strength[device][sparsity]
            own = settings.get("method_options", ())
            settings["method_options"] = (*own, strength)
        else:
            settings["sparsity"] = sparsity
        if chosen.drawn is not None:
            settings["draw_sparsity"] = chosen.drawn
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train_spec(Settings(**settings, output_dir=str(Path(folder) / "run")))
        scores = [(sparsity, result.sparsity, result.scores.top1)]
        if entry is not None and ENTRIES[entry].drawn is not None:
            swept = sweep(Path(folder) / "run", ENTRIES[entry].sparsities, bench=False)
            scores = [(row.sparsity, row.zeros, row.top1) for row in swept.rows]
    return [
        {
            "entry": entry or "dense",
            "asked": asked,
            "seed": seed,
            "sparsity": round(reached, 5),
            "top1": round(100 * top1, 3),
            "settings": {k: v for k, v in settings.items() if COMMON.get(k) != v},
            "seconds": round(time.perf_counter() - began, 1),
            "cpu": record.cpu(),
        }
        for asked, reached, top1 in scores
    ]


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[float, tuple[float, float, float, int]]]:
    """Entry -> asked sparsity -> mean and deviation of top-1, mean sparsity, runs."""
    table: dict[str, dict[float, tuple[float, float, float, int]]] = {}
    for entry in ("dense", *ENTRIES):
        for asked in (0.0, *COLUMNS):
            chosen = [row for row in rows if (row["entry"], row["asked"]) == (entry, asked)]
            if chosen:
                top1 = [row["top1"] for row in chosen]
                deviation = statistics.stdev(top1) if len(top1) > 1 else 0.0
                sparsity = statistics.mean(row["sparsity"] for row in chosen)
                table.setdefault(entry, {})[asked] = (
                    statistics.mean(top1), deviation, sparsity, len(top1),
                )  # fmt: skip
    return table


def show(rows: list[dict[str, Any]]) -> None:
    """Mean top-1 with its deviation over seeds; learned sparsities in brackets."""
    table = Table("top-1, %", *(f"{100 * s:.0f} %" for s in COLUMNS))
    for entry, cells in summary(rows).items():
        if entry == "dense":
            mean, deviation, _, runs = cells[0.0]
            table.caption = f"dense: {mean:.2f} ± {deviation:.2f} ({runs} seeds)"
            continue
        texts = []
        for asked in COLUMNS:
            if asked not in cells:
                texts.append("")
                continue
            mean, deviation, sparsity, runs = cells[asked]
            learned = f" ({100 * sparsity:.1f} %)" if ENTRIES[entry].strength is not None else ""
            texts.append(f"{mean:.2f} ± {deviation:.2f}{learned}" + ("" if runs > 1 else " 1 seed"))
        table.add_row(entry, *texts)
    Console(width=140).print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over the share of weights that is left."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the backend is chosen)

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for entry, cells in summary(rows).items():
        if entry == "dense":
            axes.axhline(cells[0.0][0], color="grey", linestyle="--", label="dense")
            continue
        left = [100 * (1 - cell[2]) for cell in cells.values()]
        axes.errorbar(
            left,
            [cell[0] for cell in cells.values()],
            yerr=[cell[1] for cell in cells.values()],
            marker="o",
            capsize=3,
            label=entry,
        )
    axes.set_xscale("log")
    left = [100 * (1 - column) for column in COLUMNS]
    axes.set_xticks(left, [f"{value:g}" for value in map(round, left)])
    axes.set_xticks([], minor=True)
    axes.invert_xaxis()
    axes.set_xlabel("weights left, %")
    axes.set_ylabel("top-1, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
