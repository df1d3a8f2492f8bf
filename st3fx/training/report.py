"""What the loop tells whoever watches it, and what came of a run: plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from st3fx.training.evaluate import Scores


@dataclass(frozen=True)
class TrainResult:
    """A finished run, or with ``--test-only`` an evaluation.

    Attributes:
        name: Of the model.
        folder: Where the run is; ``None`` for the evaluation of a model without one.
        steps: Optimizer steps.
        seconds: How long this process trained; not counted is what came before a resumption.
        scores: Of the final model.
        best: Best top-1 accuracy of an epoch at the full sparsity, and that epoch.
        dense: Top-1 accuracy after the last epoch without any sparsity, if there was one.
        sparsity: Share of zeros in the sites.
        target: What was asked for; ``None`` for thresholds that are learned.
        layers: Share of zeros by site.
        own: Final sparsity that was asked for of single sites, by name.
        empty: Sites without a weight left.
        dense_bytes: Of all weights before.
        files: Name -> bytes of what was written for use.
        compressed_bytes: Of the folded weights, compressed with zlib.
    """

    name: str
    folder: Path | None
    steps: int
    seconds: float
    scores: Scores
    best: tuple[float, int] | None
    dense: float | None
    sparsity: float
    target: float | None
    layers: dict[str, float]
    empty: tuple[str, ...]
    own: dict[str, float] = field(default_factory=dict)
    dense_bytes: int = 0
    files: dict[str, int] = field(default_factory=dict)
    compressed_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **asdict(self),
            "folder": None if self.folder is None else str(self.folder),
            "empty": list(self.empty),
            "best": None if self.best is None else {"top1": self.best[0], "epoch": self.best[1]},
        }


@dataclass(frozen=True)
class Outline:
    """What a run is going to do, told once before it starts.

    Attributes:
        name: Of the model.
        data: Of the data.
        folder: Where the run is written.
        method: Of the sparsification.
        target: Final sparsity; ``None`` for thresholds that are learned.
        budget: What the sparsity is a share of: ``weights`` or ``macs``.
        epochs: Passes over the data.
        steps: Optimizer steps of the whole run.
        done: Optimizer steps that were done before: 0, or those of the run that goes on.
        sites: How many weights become sparse.
        site_parameters: Their scalars.
        parameters: Scalars of the whole model.
        device: What it runs on, e.g. ``cpu`` or ``2 × cuda``.
        draw: Between which sparsities that of each step is drawn, if it is.
    """

    name: str
    data: str
    folder: Path
    method: str
    target: float | None
    budget: str
    epochs: int
    steps: int
    done: int
    sites: int
    site_parameters: int
    parameters: int
    device: str
    draw: tuple[float, float] | None = None


@dataclass(frozen=True)
class TrainRow:
    """The steps since the row before.

    Attributes:
        step: Optimizer steps so far.
        epoch: Passes so far, with the share of the one under way.
        loss: Mean training loss.
        accuracy: Share of training samples that were right, while their weights changed.
        lr: Learning rate of the last step.
        sparsity: Share of zeros in the sites now; where each step draws its own, of the next one.
        wanted: Sparsity that the schedule wants now, and evaluations have; ``None`` without one.
        threshold: Global threshold; ``None`` while there is none.
        rate: Samples per second, all processes together.
    """

    step: int
    epoch: float
    loss: float
    accuracy: float
    lr: float
    sparsity: float
    wanted: float | None
    threshold: float | None
    rate: float

    def to_dict(self) -> dict[str, Any]:
        """As a row of the log."""
        return {"kind": "train", **asdict(self)}


@dataclass(frozen=True)
class EvalRow:
    """An evaluation.

    Attributes:
        step: Optimizer steps so far.
        epoch: Passes so far.
        loss: Mean loss on the test data.
        top1: Share of test samples whose best class is right.
        top5: Among the best five; ``None`` for five classes or fewer.
        sparsity: Of the model that was evaluated.
        at_target: Whether the target is reached, and stays so.
        best: Whether it is the best so far among those at the target.
        empty: Sites without a single weight left.
    """

    step: int
    epoch: int
    loss: float
    top1: float
    top5: float | None
    sparsity: float
    at_target: bool
    best: bool
    empty: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As a row of the log."""
        return {"kind": "eval", **asdict(self), "empty": list(self.empty)}


@dataclass(frozen=True)
class BadRow:
    """A sample that was left out (``--on-bad-sample skip``), where it was first met.

    Attributes:
        step: Optimizer steps before it.
        part: ``train``, where another stands in for it, or ``test``.
        index: In its data set.
        file: What it is read from; empty where that is not known.
        reason: What is wrong with it.
    """

    step: int
    part: str
    index: int
    file: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As a row of the log."""
        return {"kind": "bad", **asdict(self)}


class Reporter(Protocol):
    """Watches a run. Called in the main process only; must not take long."""

    def stage(self, name: str) -> None:
        """A stage of the preparation, or of the end, begins."""

    def begin(self, outline: Outline) -> None:
        """Training begins."""

    def step(self, step: int) -> None:
        """An optimizer step was done."""

    def train(self, row: TrainRow) -> None:
        """A row of the log."""

    def evaluation(self, row: EvalRow) -> None:
        """An evaluation ended."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def end(self) -> None:
        """Training is over, or was stopped."""


class Silent:
    """Watches without a word."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def begin(self, outline: Outline) -> None:
        """Nothing."""

    def step(self, step: int) -> None:
        """Nothing."""

    def train(self, row: TrainRow) -> None:
        """Nothing."""

    def evaluation(self, row: EvalRow) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""
