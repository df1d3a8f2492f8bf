"""The folder of a training: its settings, its log, its newest checkpoint, what was made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from st3fx import methods
from st3fx.files.ours import is_bundle
from st3fx.inspection.converted import look_bundle, look_checkpoint
from st3fx.inspection.found import Digest, Found
from st3fx.training.folder import RunFolder
from st3fx.training.log import Log
from st3fx.training.method import make_method
from st3fx.training.settings import Settings, read_run


def look_run(path: Path) -> Found:
    """A training, under way, stopped, or over.

    Raises:
        TrainError: When a part of it is damaged.
        BundleError: When its bundle is.
    """
    folder = RunFolder(path)
    settings = read_run(folder.settings)
    rows = Log(folder.log).rows()
    tests = [row for row in rows if row["kind"] == "eval"]
    bad = sum(row["kind"] == "bad" for row in rows)
    notes = [f"{bad} samples could not be used: {folder.log} has them."] if bad else []
    model = look_bundle(folder.bundle) if is_bundle(folder.bundle) and _has(folder) else None
    saved = look_checkpoint(folder.last) if folder.last.is_file() else None
    found = _described(path, settings, model, saved)
    known = model or saved
    return dataclasses.replace(
        found, files=_files(folder), bytes=sum(_files(folder).values()), scores=_scores(tests),
        digests=_digests(model, saved), notes=(*notes, *(known.notes if known else ())),
    )  # fmt: skip


def _has(folder: RunFolder) -> bool:
    return any(folder.bundle.iterdir())


def _described(path: Path, settings: Settings, model: Found | None, saved: Found | None) -> Found:
    """What the model is, from the bundle if there is one, or else from the checkpoint."""
    known = model or saved
    state = "is over" if model else "has a checkpoint" if saved else "has no checkpoint yet"
    epochs = f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"
    about = f"{settings.data}, {epochs}, {state}"
    if saved and not model:
        about += f": {saved.progress}"
    method = None if known else make_method(settings)
    base = known or Found("", "", "", 0, settings=methods.to_dict(method) if method else {})
    text = base.method or (f"{methods.key_of(method)}, {method.granularity.text}" if method else "")
    return dataclasses.replace(
        base, path=str(path), kind="run, the folder of a training", format="settings.toml",
        model=settings.spec, method=text, progress=about,
        target=base.target if known or method is None else method.target,
    )  # fmt: skip


def _scores(tests: list[dict[str, Any]]) -> dict[str, float]:
    if not tests:
        return {}
    last = tests[-1]
    full = [row for row in tests if row.get("best")]
    scores = {"top-1": last["top1"]}
    return scores | ({"best top-1": full[-1]["top1"]} if full else {})


def _files(folder: RunFolder) -> dict[str, int]:
    """What is there of a training and of what was made of it."""
    names = (folder.settings, folder.log, folder.last, folder.best, folder.bundle, folder.folded,
             folder.curves, *folder.results)  # fmt: skip
    found = {}
    for each in names:
        parts = each.rglob("*") if each.is_dir() else (each,)
        sizes = [part.stat().st_size for part in parts if part.is_file()]
        if sizes:
            found[str(each.relative_to(folder.path))] = sum(sizes)
    return found


def _digests(model: Found | None, saved: Found | None) -> tuple[Digest, ...]:
    found = (
        [Digest(f"checkpoints/last.pt, {d.what}", d.holds) for d in saved.digests] if saved else []
    )
    if model:
        found += [
            d if d.said or "/" in d.what else Digest(f"model.st3fx/{d.what}", d.holds)
            for d in model.digests
        ]
    return tuple(found)
