"""The end of a run: the final model, checked against what was asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.training import method
from st3fx.training.loop import score
from st3fx.training.report import TrainResult
from st3fx.training.saving import get_states
from st3fx.training.session import Session


def finish(
    session: Session, name: str, seconds: float, *, check: bool = True
) -> tuple[TrainResult, nn.Module]:
    """Score the final model and check its sparsity; all processes must call it.

    Args:
        session: After its last epoch.
        name: Of the model.
        seconds: How long it trained.
        check: Whether the sparsity that was asked for must have been reached.

    Returns:
        What came of it, and the final model, converted still: the averaged one if there is one,
        with the batch-norm statistics that it was scored with.

    Raises:
        TrainError: When the sparsity that was asked for was missed.
    """
    # The statistics are those that the last epoch was evaluated with.
    scores, sparsifier = score(session, epoch=max(0, session.epoch - 1), keep=True)
    model = _whole(session, sparsifier)
    layers = method.layer_sparsity(sparsifier)
    steps = session.steps_per_epoch * session.settings.epochs
    if check:
        method.require_target(sparsifier, method.share(sparsifier, layers), steps)
    rows = session.log.rows()
    result = TrainResult(
        name=name,
        folder=session.folder.path,
        steps=session.step,
        seconds=seconds,
        scores=scores,
        best=_best(rows),
        dense=_dense(rows),
        sparsity=sparsifier.sparsity,
        target=sparsifier.target,
        layers=layers,
        empty=tuple(layer for layer, share in layers.items() if share == 1),
    )
    return result, model


def _whole(session: Session, sparsifier: Sparsifier) -> nn.Module:
    """The model with all its weights in this process."""
    if session.twin is None:
        return sparsifier.model
    states, _ = get_states(session.plain, session.optimizer)
    if states:  # only the main process is given them
        session.twin.load_state_dict(states)
    return session.twin


def _best(rows: list[dict[str, Any]]) -> tuple[float, int] | None:
    best = [row for row in rows if row["kind"] == "eval" and row["best"]]
    return (best[-1]["top1"], best[-1]["epoch"]) if best else None


def _dense(rows: list[dict[str, Any]]) -> float | None:
    dense = [row for row in rows if row["kind"] == "eval" and row["sparsity"] == 0]
    return dense[-1]["top1"] if dense else None
