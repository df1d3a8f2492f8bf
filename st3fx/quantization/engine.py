"""Quantizes one exported file; the file of integers appears when all checks of it held."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx

from st3fx.errors import QuantizeError, describe, few, suggest
from st3fx.export.export_result import Size
from st3fx.export.quantized import QuantFile, default_name, write_lowered
from st3fx.export.weights import size_of_files
from st3fx.export.write import data_path, save_proto, weights_beside
from st3fx.files.atomic import followed, move_into_place, temporary_neighbour
from st3fx.files.ours import is_ours
from st3fx.passes.onnx.values import Array
from st3fx.quantization.calibrate import Feed, Ranges, check_feed, find_ranges
from st3fx.quantization.check import Rounding, check_outputs, check_weights
from st3fx.quantization.dynamic import dynamically
from st3fx.quantization.finetune import Checked, Finetuned, Tuning, finetune
from st3fx.quantization.layers import Layer
from st3fx.quantization.measure import (
    Run,
    compare,
    loose_outputs,
    opened,
    opened_model,
    opened_sparse,
)
from st3fx.quantization.qdq import Source, quantized, read_source
from st3fx.quantization.quantize_result import Accuracy, LayerRow, QuantizeResult
from st3fx.quantization.search import gains, in_fp32, least_kept
from st3fx.quantization.settings import Settings


class Score(Protocol):
    """Scores a file.

    Attributes:
        samples: On how many; ``None`` where that is not known, or not before the first call.
    """

    samples: int | None

    def __call__(self, run: Run) -> float:
        """A share, larger is better."""


COLLAPSE = 10.0
"""Points of accuracy that no file may lose: more is no rounding, and nobody's aim."""

APART = 1.0
"""Points between the accuracies of a file and of its form with our kernels, at most: both compute
the same but for bytes that rounding moves to their neighbours."""

FEW = 3
"""Samples that may be answered otherwise whatever share of the test data they are."""

BY_HAND = "asked for"
SEARCHED = "costs accuracy"


@dataclass
class Compared:
    """Calls by which outputs are compared and layers are ranked; known once ranges are taken.

    Attributes:
        feeds: The calls.
        is_new: Whether ranges were taken from others.
    """

    feeds: list[Feed]
    is_new: bool = True


@dataclass(frozen=True)
class Data:
    """What a file is quantized by.

    Attributes:
        calibration: Calls for the ranges of activations.
        compared: A few others.
        held_out: Scores on data that neither saw, to choose layers by; ``None`` without.
        test: Scores on the test data, which chooses nothing unless it is ``held_out``; likewise.
        tuning: By what the file is trained; ``None`` where it stays as calibration made it.
    """

    calibration: Iterable[Feed]
    compared: Compared
    held_out: Score | None = None
    test: Score | None = None
    tuning: Tuning | None = None


def quantize(
    exported: Path,
    path: Path,
    data: Data,
    settings: Settings,
    *,
    began: float,
    progress: Callable[[str], None],
) -> QuantizeResult:
    """Write the integers' form of an exported fp32 file.

    Args:
        exported: The fp32 file.
        path: The file to write; one that is there is replaced.
        data: For ranges, ranks and scores.
        settings: How.
        began: When the whole work did, by ``time.perf_counter()``.
        progress: Called with the name of each stage as it begins.

    Raises:
        QuantizeError: When it cannot be done, or what came out is wrong. Nothing is left then.
    """
    try:
        path = followed(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_neighbour(path) as folder:
            work = folder / "work"
            work.mkdir()
            job = _Job(exported, work, data, settings, progress)
            kept = job.choose()
            return job.write(kept, folder / path.name, path, began)
    except OSError as error:
        raise QuantizeError(f"cannot write {path}: {error.strerror or error}") from error


class _Job:
    """One fp32 file on its way to integers."""

    def __init__(
        self,
        exported: Path,
        work: Path,
        data: Data,
        settings: Settings,
        progress: Callable[[str], None],
    ) -> None:
        self.exported, self.work, self.data, self.settings = exported, work, data, settings
        self.progress = progress
        self.source: Source = read_source(exported, work, dynamic=settings.is_dynamic)
        self.by_hand = _named(settings.keep_fp32, self.source.possible)
        self.ranges: Ranges | None = None
        if settings.is_dynamic:
            for number, feed in enumerate(data.calibration):
                check_feed(feed, number)  # and some of them are kept to compare by
        else:
            progress("ranges")
            self.ranges = find_ranges(
                self.source.path, data.calibration, self.source.operators(), settings
            )
        self.fp32: Run = opened(exported)
        self.expected: list[Mapping[str, Array]] = [self.fp32(feed) for feed in data.compared.feeds]
        self.loose = loose_outputs(self.source.model.graph)
        self.gains: dict[str, float] = {}
        self.held_out: Accuracy | None = None
        self.tried = 0

    def made(self, kept: Collection[str]) -> onnx.ModelProto:
        """The file with these layers in fp32."""
        if self.ranges is None:
            return dynamically(self.source, kept, self.settings.weight_range)
        return quantized(self.source, self.ranges, kept, self.settings.weight_range)

    def with_one_in_fp32(self, model: onnx.ModelProto, layer: Layer) -> onnx.ModelProto:
        """A file of integers, without one layer."""
        if self.ranges is None:
            return self.made({*self.by_hand, layer.name})
        return in_fp32(model, self.source, layer)  # sooner than by the quantizer

    def choose(self) -> set[str]:
        """Names of the layers that stay in fp32."""
        rest = [layer for layer in self.source.possible if layer.name not in self.by_hand]
        if not rest:
            raise QuantizeError(
                f"--keep-fp32 {' '.join(self.settings.keep_fp32)} leaves no layer for integers"
            )
        bound = self.settings.max_drop
        if self.settings.rank or bound is not None:
            self.progress("rank")
            model = self.made(self.by_hand)
            self.gains = gains(
                model, functools.partial(self.with_one_in_fp32, model), rest,
                self.data.compared.feeds, self.expected, self.work / "trial.onnx", self.loose,
            )  # fmt: skip
        return self.by_hand if bound is None else self.by_hand | self._search(rest, bound)

    def _search(self, rest: Sequence[Layer], bound: float) -> set[str]:
        score = self.data.held_out
        if score is None:
            raise QuantizeError("--max-drop needs data with targets to measure the accuracy on")
        self.progress("search")
        order = [layer.name for layer in rest]
        order.sort(key=lambda name: -self.gains.get(name, -math.inf))
        before = score(self.fp32)

        def scored(kept: Collection[str]) -> float:
            model = self.made({*self.by_hand, *kept})
            return score(opened_model(model, self.work / "trial.onnx"))

        # A bound of 0.2 points is met by a drop of exactly that, whatever its sum was rounded to.
        found = least_kept(order, scored, before - bound / 100 - 1e-9)
        if found is None:
            raise QuantizeError(
                f"with all but one of {len(order)} layers in fp32 still more than {bound:g} points "
                "are lost: give a larger --max-drop"
            )
        self.tried = found.tried
        self.held_out = Accuracy(before, found.score, score.samples)
        return set(found.kept)

    def write(self, kept: Collection[str], part: Path, path: Path, began: float) -> QuantizeResult:
        """Write the file beside its place, check it there, and move it."""
        self.progress("integers")
        model, trained, calibrated = self._trained(self.made(kept))
        roundings = check_weights(model, self.source, kept)
        opset = next(item.version for item in model.opset_import if item.domain in {"", "ai.onnx"})
        save_proto(model, part)
        _check(part)
        run = opened(part)
        comparison = compare(self.expected, run, self.data.compared.feeds, self.loose)
        check_outputs(comparison)
        accuracy = self._accuracy(run)
        sparse, sparse_accuracy = self._lowered(part, accuracy)
        self.progress("measure")
        made = [part] if sparse is None or sparse.path is None else [part, sparse.path]
        sizes = (
            _size("fp32", [self.exported, data_path(self.exported)]),
            *(_size(file.name, [file, data_path(file)]) for file in made),
        )
        files = [each for file in made for each in (file, data_path(file)) if each.exists()]
        before = _before(path, {file.name for file in files})
        # The weights before the file that reads them.
        move_into_place(part.parent, [file.name for file in reversed(files)], before)
        if sparse is not None and sparse.path is not None:
            sparse = dataclasses.replace(sparse, path=path.with_name(sparse.path.name))
        return QuantizeResult(
            path=path,
            files=tuple(path.with_name(file.name) for file in files),
            opset=opset,
            calibration=self.settings.calibration,
            calibration_samples=0 if self.ranges is None else self.ranges.samples,
            weight_range=self.settings.weight_range,
            layers=tuple(self._row(layer, roundings) for layer in self.source.layers),
            sqnr=comparison.worst[1],
            compared=sum(len(next(iter(feed.values()))) for feed in self.data.compared.feeds),
            compared_new=self.data.compared.is_new,
            accuracy=accuracy,
            tested_new=self.data.held_out is None or self.data.test is not self.data.held_out,
            held_out=self.held_out,
            max_drop=self.settings.max_drop,
            tried=self.tried,
            sizes=sizes,
            seconds=time.perf_counter() - began,
            sparse=sparse,
            sparse_accuracy=sparse_accuracy,
            finetuned=trained,
            calibrated=calibrated,
        )

    def _trained(
        self, model: onnx.ModelProto
    ) -> tuple[onnx.ModelProto, Finetuned | None, float | None]:
        """The file, finetuned if that is asked for; what was done; its score before."""
        if self.data.tuning is None:
            return model, None, None
        self.progress("finetune")
        trial = self.work / "trial.onnx"
        test = self.data.test
        before = None if test is None else test(opened_model(model, trial))
        checked = Checked(self.data.compared.feeds, self.expected, trial, self.loose)
        model, trained = finetune(
            model, self.source, self.settings.weight_range, self.data.tuning, checked
        )
        self.progress("integers")
        return model, trained, before

    def _lowered(
        self, part: Path, accuracy: Accuracy | None
    ) -> tuple[QuantFile | None, float | None]:
        """The form with our kernels beside the file, and its score.

        Raises:
            QuantizeError: When it scores otherwise.
            ExportError: As ``write_lowered``.
        """
        if not self.settings.sparse_kernels:
            return None, None
        path = part.with_name(default_name(part))
        sparse = write_lowered(part, path, self.data.compared.feeds, progress=self.progress)
        if sparse.path is None or self.data.test is None or accuracy is None:
            return sparse, None
        self.progress("score")
        score = self.data.test(opened_sparse(path))
        if not 100 * abs(score - accuracy.int8) <= _allowed(APART, accuracy.samples):
            raise QuantizeError(
                f"with our kernels the accuracy is {score:.1%}, with ONNX Runtime's own "
                f"{accuracy.int8:.1%}: no file is left; leave --sparse-kernels out, and report it"
            )
        return sparse, score

    def _accuracy(self, run: Run) -> Accuracy | None:
        if self.data.test is None:
            return None
        self.progress("score")
        test = self.data.test
        accuracy = Accuracy(test(self.fp32), test(run), test.samples)
        if not accuracy.drop <= _allowed(COLLAPSE, accuracy.samples):
            worst = max(self.gains, key=lambda name: self.gains[name], default="")
            first = f", {worst} first" if worst else ""
            raise QuantizeError(
                f"in integers the accuracy falls from {accuracy.fp32:.1%} to {accuracy.int8:.1%}: "
                f"leave layers in fp32 (--max-drop, or --keep-fp32{first}), or try another "
                "--calibration"
            )
        return accuracy

    def _row(self, layer: Layer, roundings: Mapping[str, Rounding]) -> LayerRow:
        rounding = roundings.get(layer.name)
        reason = layer.reason or (BY_HAND if layer.name in self.by_hand else SEARCHED)
        return LayerRow(
            name=layer.name,
            op=layer.op,
            shape=layer.shape,
            weights=layer.weights,
            zeros=layer.zeros,
            integer_zeros=None if rounding is None else rounding.zeros,
            reason="" if rounding is not None else reason,
            gain=self.gains.get(layer.name),
        )


def _named(globs: Sequence[str], layers: Sequence[Layer]) -> set[str]:
    """Names of the layers that globs over weights or their modules name.

    Raises:
        QuantizeError: When one names nothing.
    """
    found: set[str] = set()
    for glob in globs:
        names = {
            layer.name
            for layer in layers
            if fnmatch.fnmatchcase(layer.name, glob)
            or fnmatch.fnmatchcase(layer.name.rpartition(".")[0], glob)
        }
        if not names:
            known = [layer.name for layer in layers]
            raise QuantizeError(
                f"--keep-fp32 {glob!r} names no layer{suggest(glob, known)}; there are {few(known)}"
            )
        found |= names
    return found


def _before(path: Path, names: Collection[str]) -> list[Path]:
    """What goes before new files come to a place.

    That are files with weights beside them, which no other file may lie beside, and an older form
    with our kernels, which was made from another file.
    """
    gone: list[Path] = []
    for target in (path, path.with_name(default_name(path))):
        beside, is_stale = weights_beside(target), target.name not in names and is_ours(target)
        if is_stale or (beside and target.name in names):
            gone += [*beside, target]
    return gone


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise QuantizeError(f"onnx.checker refuses the model: {describe(error)}") from error


def _size(name: str, files: Sequence[Path]) -> Size:
    return size_of_files(name, [file for file in files if file.exists()])


def _allowed(points: float, samples: int | None) -> float:
    """So many points of accuracy, or a few samples where that is more."""
    return max(points, 100 * FEW / samples) if samples else points
