"""From what a benchmark runs to the variants that it compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from st3fx import runtime
from st3fx.bench import onnx_call
from st3fx.bench.settings import BenchSettings
from st3fx.bench.twin import write_dense
from st3fx.bench.variant import Variant
from st3fx.errors import BenchError
from st3fx.export.call import unique
from st3fx.verbs.eager import PREPARE
from st3fx.verbs.subjects import Subject

DENSE_ROW = "dense"
"""Name of the row of a model without its zeros."""

SPARSE = "sparse kernels"
"""Name of the row of a model in its sparse form."""


def variants(
    subjects: Sequence[Subject],
    settings: BenchSettings,
    folder: Path,
    report: Callable[[str], None],
) -> list[Variant]:
    """What is compared; the first is the baseline.

    A single model with zeros, and a first one that was exported here, gets its dense counterpart
    before it.
    """
    first = subjects[0]
    rows = []
    if wants_dense(subjects):
        report("dense")
        dense = folder / "dense.onnx"
        # Where zeros are in no weight as it is stored (computed, packed) some would be left.
        if write_dense(first.path, dense, first.zeros) == sum(first.zeros.values()):
            blank = dataclasses.replace(first, sparsity=0.0, bound=None, skips_zeros=False)
            rows.append(_variant(DENSE_ROW, dense, blank, settings))
    names = unique(_names(subjects))
    for name, subject in zip(names, subjects, strict=True):
        rows.append(_variant(name, subject.path, subject, settings))
        if subject.kernels is not None:
            title = SPARSE if len(subjects) == 1 else f"{name}, {SPARSE}"
            sparse = dataclasses.replace(subject, path=subject.kernels, skips_zeros=True)
            rows.append(_variant(title, sparse.path, sparse, settings))
    if settings.torch and first.request is None:
        raise BenchError(
            "rows by PyTorch need a bundle or a SPEC first: an ONNX file is no PyTorch model"
        )
    for mode in settings.torch:
        assert first.request is not None
        arguments = {"request": dataclasses.asdict(first.request), "mode": mode}
        rows.append(
            Variant(f"torch {mode}", PREPARE, arguments, first.inputs, first.sparsity, first.bound)
        )
    return rows


def wants_dense(subjects: Sequence[Subject]) -> bool:
    """Whether the first model is to have a dense counterpart."""
    return bool(subjects[0].zeros) and (len(subjects) == 1 or not subjects[0].is_file)


def _variant(name: str, path: Path, subject: Subject, settings: BenchSettings) -> Variant:
    custom_ops = settings.custom_ops
    if subject.skips_zeros and custom_ops is None:
        custom_ops = runtime.library()
    arguments = {
        "path": str(path),
        "providers": list(settings.providers),
        # Absolute: the loader of shared libraries looks for a bare name elsewhere.
        "custom_ops": custom_ops and str(Path(custom_ops).resolve()),
    }
    return Variant(
        name, onnx_call.PREPARE, arguments, subject.inputs, subject.sparsity, subject.bound,
        subject.skips_zeros,
    )  # fmt: skip


def _names(subjects: Sequence[Subject]) -> list[str]:
    """Names of the rows: ``folded`` alone, else those of the models, as long as they differ."""
    if len(subjects) == 1 and not subjects[0].is_file:
        return ["folded" if subjects[0].zeros else "dense"]
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        return [s.request.spec if s.request else str(s.path) for s in subjects]
    return names
