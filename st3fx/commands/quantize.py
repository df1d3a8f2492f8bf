"""From a trained model to a file of 8-bit integers: the facade's verb that quantizes.

The data of a run, in the parts that have no sample in common: a choice of training images for the
ranges of activations, a few for comparing outputs, others for choosing layers. Test data only says
what came of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from st3fx import runtime
from st3fx.commands.calls import Calls, UsersScore, samples_of
from st3fx.commands.export import export_onnx
from st3fx.commands.finetune import Given, OfRun, tuning_of
from st3fx.commands.models import Request, folded, of_run
from st3fx.commands.progress import silent
from st3fx.commands.train import data_settings
from st3fx.data import Data, DataSettings, make_data
from st3fx.errors import NativeError, QuantizeError
from st3fx.export.export_result import ExportResult
from st3fx.files.atomic import scratch
from st3fx.files.bundle import MANIFEST, read_bundle
from st3fx.loading.input_spec import parse_inputs
from st3fx.loading.spec import parse_spec
from st3fx.loading.trust import USER, Permit
from st3fx.quantization import engine
from st3fx.quantization.calibrate import Feed
from st3fx.quantization.finetune import Course
from st3fx.quantization.measure import Run
from st3fx.quantization.quantize_result import QuantizeResult
from st3fx.quantization.settings import Settings
from st3fx.training.batches import Stream
from st3fx.training.folder import RunFolder
from st3fx.training.report import Reporter, Silent
from st3fx.training.settings import Settings as TrainingSettings
from st3fx.training.settings import read_run

CALIBRATION_BATCH = 8
"""Samples in one call while ranges are taken: histograms need all activations of a call."""

SCORE_BATCH = 32
"""Samples in one call while outputs are compared and scored."""

COMPARED = 64
"""Samples by which outputs are compared."""

EVERY = 5
"""Of so many calls that a user gives, one is compared by."""

SUFFIX = ".int8.onnx"
"""Of a file of integers where no name was asked for."""

FINETUNE_BATCH = 128
"""Samples of a step of training at most, where the user gives the batches."""

RECORD = "quantize.json"
"""In a run's folder: what its quantization did."""


def quantize(
    model: nn.Module,
    calibration_batches: Iterable[Any],
    path: str | Path,
    *,
    calibration: str = "minmax",
    percentile: float = 99.99,
    weight_range: str = "safe",
    keep_fp32: Sequence[str] = (),
    evaluate: Callable[[Callable[..., Any]], float] | None = None,
    test: Callable[[Callable[..., Any]], float] | None = None,
    max_drop: float | None = None,
    rank: bool = True,
    sparse_kernels: bool = False,
    finetune: int = 0,
    finetune_batches: Iterable[Any] | None = None,
    lr: float = Course.lr,
    learn_scales: bool = False,
    opset: int | None = None,
    fixed_batch: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> QuantizeResult:
    """Write a model as ONNX with 8-bit integers, which the stock ONNX Runtime runs anywhere.

    The model is folded and exported in fp32, as ``export_onnx`` does it, and quantized after
    training by ONNX Runtime's quantizer: QuantizeLinear and DequantizeLinear around what runs in
    integers, activations uint8, weights int8 with one scale for each output channel. Every zero of
    the weights stays a zero. The file is there only if that was so, and if its outputs are those
    of the fp32 file up to rounding.

    Args:
        model: A folded model, or any other; a converted one is folded first, on a copy.
        calibration_batches: What the model is called with, without targets: tensors, tuples of
            positional or dicts of keyword arguments. A few hundred samples like those it will see;
            the first of them are the example that it is exported with. Where there are 40 or more,
            some of them are kept from the ranges, to compare outputs by.
        path: The file; one that is there is replaced.
        calibration: ``minmax`` takes the range of all values, ``percentile`` cuts off the rarest,
            ``entropy`` the range whose histogram loses least. With ``dynamic`` the file finds the
            range of each call itself: linear layers alone are in integers then, and the batches
            are what outputs are compared by.
        percentile: With ``percentile``, how many of a hundred values a range keeps.
        weight_range: ``safe`` leaves weights so much room that no CPU overflows; ``full`` uses all
            of an int8, which rounds a little less, and which x86 without VNNI computes wrongly.
        keep_fp32: Globs over names of weights or of the modules that own them: these layers stay in
            fp32.
        evaluate: Called with a function that is called as the model is and gives its outputs as
            tensors; gives a share, larger is better. Called for both files.
        test: The same on data that chooses nothing; by default ``evaluate``.
        max_drop: Points of what ``evaluate`` gives that may be lost: as many layers as needed stay
            in fp32. Whether that holds on other data only ``test`` can say.
        rank: Try each layer in fp32 by itself.
        sparse_kernels: Write a second file beside it, ``model.int8.sparse.onnx`` beside
            ``model.int8.onnx``, in which the layers that gain run by INT8 kernels that skip blocks
            of zeros, in sessions that ``st3fx.runtime.session`` opens. Its outputs and its score
            are compared with the first one's.
        finetune: Epochs to train for with everything rounded as in the file, by the outputs in
            fp32 and without targets; zeros stay. On a GPU where there is one.
        finetune_batches: What to train on, like ``calibration_batches``, which is the default.
        lr: Learning rate of that, which falls to zero along a cosine.
        learn_scales: Train the scales of activations too; else they stay those of calibration.
        opset: Of the file, from 13 on; ``None`` for the exporter's default.
        fixed_batch: Build the batch size of the first batch in.
        seed: Of the random values that the export is compared with, and of the order of batches.
        progress: Called with the name of each stage as it begins.

    Returns:
        Zeros before and after, layers with what each costs, scores, sizes.

    Raises:
        QuantizeError: When the data does not fit, or what comes out is wrong.
        ExportError: As ``export_onnx``, and when the second file differs.
    """
    began, report = time.perf_counter(), progress or silent
    settings = Settings(
        calibration, percentile, tuple(keep_fp32), max_drop, weight_range, rank, sparse_kernels
    )
    course = Course(finetune, lr, learn_scales) if finetune else None
    _check(settings, course)
    if course is not None and finetune_batches is None:
        finetune_batches = calibration_batches = list(calibration_batches)
    batches = iter(calibration_batches)
    try:
        first = next(batches)
    except StopIteration:
        raise QuantizeError("the calibration data has no batch: give at least one") from None
    with scratch() as folder:
        exported = _export(model, first, folder, opset, report, fixed_batch, seed)
        calls = Calls(model, exported)
        feeds = (
            feed
            for batch in itertools.chain([first], batches)
            for _, feed in calls.feeds(batch, CALIBRATION_BATCH)
        )
        compared = engine.Compared([])
        scores = [None if each is None else UsersScore(each, calls) for each in (evaluate, test)]
        data = engine.Data(
            calibration=_keeping_back(feeds, compared),
            compared=compared,
            held_out=scores[0] if max_drop is not None else None,
            test=scores[1] or scores[0],
            tuning=tuning_of(
                model,
                course,
                lambda _: Given(list(finetune_batches or ()), calls.feeds, FINETUNE_BATCH, seed),
            ),
        )
        return engine.quantize(
            exported.path, Path(path), data, settings, began=began, progress=report
        )


def _check(settings: Settings, course: Course | None) -> None:
    """Fail early where nothing could be trained, or the file with our kernels not be run.

    Raises:
        QuantizeError: The ranges are not calibration's, or the kernel library is missing, or not
            for this machine.
    """
    if course is not None and settings.is_dynamic:
        raise QuantizeError(
            "--finetune trains with the ranges of a calibration, and --calibration dynamic takes "
            "none: leave one of the two out"
        )
    if not settings.sparse_kernels:
        return
    try:
        runtime.library()
    except NativeError as error:
        raise QuantizeError(
            f"--sparse-kernels: {error}. Without --sparse-kernels the file of integers is written "
            "alone, which runs everywhere"
        ) from error


def _keeping_back(feeds: Iterable[Feed], compared: engine.Compared) -> Iterator[Feed]:
    """The feeds but for every fifth of the first ones, which is to be compared by.

    Where there are fewer than five, all of them serve both.
    """
    samples, few = 0, list[Feed]()
    for number, feed in enumerate(feeds):
        if samples < COMPARED and number % EVERY == EVERY - 1:
            compared.feeds.append(feed)
            samples += samples_of(feed)
            continue
        if not samples and number < EVERY:
            few.append(feed)
        yield feed
    if not compared.feeds:
        compared.feeds.extend(few)
        compared.is_new = False


class _Parts:
    """The data of a run as calls of a file: training samples in a seeded order, test samples."""

    def __init__(self, data: Data, calls: Calls, images: Images, seed: int) -> None:
        self._data, self._calls, self._images, self._seed = data, calls, images, seed

    def calibration(self) -> Iterator[Feed]:
        """For ranges."""
        return (feed for feed, _ in self._train(0, self._images.calibration, CALIBRATION_BATCH))

    def compared(self) -> engine.Compared:
        """Those behind them; where there are none, the same."""
        for start in (self._images.calibration, 0):
            feeds = [feed for feed, _ in self._train(start, start + COMPARED, SCORE_BATCH)]
            if feeds:
                break
        return engine.Compared(feeds, is_new=start > 0)

    def held_out(self) -> _Score:
        """Scores training samples behind those.

        Raises:
            QuantizeError: When there is none.
        """
        start = self._images.calibration + COMPARED
        stop = start + self._images.held_out
        missing = (
            f"{self._data.name} has no training sample behind the first {start:,}, by which "
            "--max-drop could choose: give fewer --calibration-images"
        )
        return _Score(lambda: self._train(start, stop, SCORE_BATCH), missing)

    def test(self) -> _Score:
        """Scores the test samples.

        Raises:
            QuantizeError: When there is none.
        """
        return _Score(self._test, f"{self._data.name} has no test sample")

    def _train(self, start: int, stop: int, size: int) -> Iterator[tuple[Feed, Tensor]]:
        stream = Stream(self._seed, 0)
        self._data.set_epoch(0)
        with stream.active():
            batches = iter(self._data.train)
        yield from self._calls_of(_steps(batches, stream), start, stop, size)

    def _test(self) -> Iterator[tuple[Feed, Tensor]]:
        # Data that draws random numbers gives the same samples to every file that is scored.
        stream = Stream(self._seed, 0)
        with stream.active():
            batches = iter(self._data.test)
        yield from self._calls_of(_steps(batches, stream), 0, self._images.test, SCORE_BATCH)

    def _calls_of(
        self, batches: Iterator[Any], start: int, stop: int | None, size: int
    ) -> Iterator[tuple[Feed, Tensor]]:
        position = 0
        while stop is None or position < stop:
            batch = next(batches, None)
            if batch is None:
                return
            inputs, targets = batch
            low, high = max(0, start - position), None if stop is None else stop - position
            for part, feed in self._calls.feeds(inputs, size, low, high):
                yield feed, targets[part]
            position += len(targets)


def _steps(batches: Iterator[Any], stream: Stream) -> Iterator[Any]:
    while True:
        with stream.active():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class _Score:
    """The share of samples whose best class is right.

    Attributes:
        samples: How many there are; ``None`` before the first call.
    """

    def __init__(self, calls: Callable[[], Iterator[tuple[Feed, Tensor]]], missing: str) -> None:
        if next(calls(), None) is None:
            raise QuantizeError(missing)
        self._calls = calls
        self.samples: int | None = None

    def __call__(self, run: Run) -> float:
        """Score a file."""
        right = count = 0
        for feed, targets in self._calls():
            outputs = run(feed)
            logits = outputs.get("logits", next(iter(outputs.values())))
            # Probabilities as targets: the likeliest class counts.
            labels = targets if targets.dtype == torch.int64 else targets.argmax(1)
            right += int((logits.argmax(1) == labels.numpy()).sum())
            count += labels.numel()
        self.samples = count
        return right / count


def _export(
    model: nn.Module,
    example: Any,
    folder: Path,
    opset: int | None,
    progress: Callable[[str], None],
    fixed_batch: bool,
    seed: int,
) -> ExportResult:
    kinds = {str(p.dtype) for p in model.parameters() if p.dtype.is_floating_point}
    if kinds - {"torch.float32"}:
        raise QuantizeError(
            f"the model has weights of {' and '.join(sorted(kinds))}: give model.float()"
        )
    return export_onnx(
        model, example, folder / "model.onnx",
        opset=opset, fixed_batch=fixed_batch, seed=seed, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Images:
    """How many samples each part of the work sees.

    Attributes:
        calibration: Training samples for ranges.
        held_out: Others, for choosing layers.
        test: Test samples; ``None`` for all.
    """

    calibration: int = 256
    held_out: int = 1024
    test: int | None = None


@dataclass(frozen=True)
class Subject:
    """What a user names, and the data that belongs to it.

    Attributes:
        request: The model.
        data: Which data; ``None`` where none is known.
        training: How a training reads it; likewise.
        run: The run's folder, where it was named by that.
    """

    request: Request
    data: DataSettings | None
    training: TrainingSettings | None
    run: RunFolder | None

    @property
    def target(self) -> Path:
        """Where the file is written if nothing is said: in the run, else here."""
        if self.run is not None:
            return self.run.int8
        return Path(f"{self.request.name}{SUFFIX}")


def subject(request: Request, data: Mapping[str, Any]) -> Subject:
    """Find a run's bundle, and the data of a run, a bundle or a SPEC.

    Args:
        request: ``spec`` may be the folder of a run.
        data: Fields of the training's settings that say which data, as far as they are given.

    Raises:
        QuantizeError: When a run has no model yet.
    """
    request, run = of_run(request, QuantizeError)
    is_bundle = (Path(request.spec) / MANIFEST).is_file()
    around = run or RunFolder(Path(request.spec).resolve().parent)
    if is_bundle and around.settings.is_file() and "data" not in data:
        known = read_run(around.settings)
        settings = dataclasses.replace(known, **data)
    elif "data" in data:
        settings = TrainingSettings(spec=request.spec, **data)
    else:
        _require_there(request, is_bundle=is_bundle)
        return Subject(request, None, None, run)
    # Ranges are those of images as they are, and the seed chooses which of them.
    plain = dataclasses.replace(settings, augment=False, seed=request.seed)
    bundle = read_bundle(request.spec) if is_bundle else None
    permit = USER if "data" in data else Permit(around.path.resolve(), request.trust)
    return Subject(request, data_settings(plain, bundle, permit), settings, run)


def _require_there(request: Request, *, is_bundle: bool) -> None:
    """Data is the second thing that is missing where the model is not there."""
    path = Path(request.spec)
    if path.is_dir() and not is_bundle:
        raise QuantizeError(
            f"{request.spec} is no run and no bundle: give the --output-dir of st3fx train, or "
            "what st3fx convert wrote"
        )
    spec = parse_spec(request.spec)
    if spec.kind == "file" and not Path(spec.target).exists():
        raise QuantizeError(f"no file or folder {spec.target}")


def quantize_spec(
    subject: Subject,
    path: str | Path,
    settings: Settings,
    images: Images,
    *,
    course: Course | None = None,
    opset: int | None = None,
    progress: Callable[[str], None] | None = None,
    report: Reporter | None = None,
) -> QuantizeResult:
    """Quantize the model of a run, a bundle or a SPEC on its data.

    Args:
        subject: Which model and data.
        path: The file; one that is there is replaced.
        settings: How.
        images: How many samples.
        course: How the file is trained; ``None``: not at all.
        opset: Of the file.
        progress: Called with the name of each stage as it begins.
        report: Who watches the training.

    Raises:
        QuantizeError: As :func:`quantize`, and where there is no data.
        St3fxError: As ``st3fx.commands.models.folded``, ``make_data`` and ``export_onnx``.
    """
    began, stage = time.perf_counter(), progress or silent
    if subject.data is None or subject.training is None:
        raise QuantizeError(
            f"no data for {subject.request.spec}: name the run that it is from, or give --data, "
            "which calibration needs"
        )
    _check(settings, course)
    stage("data")
    data = make_data(subject.data)
    model = folded(subject.request, stage, with_example=False).model
    with scratch() as folder:
        given = subject.request.inputs
        example = parse_inputs(given, seed=subject.request.seed) if given else data.example(2)
        exported = _export(model, example, folder, opset, stage, False, subject.data.seed)
        calls = Calls(model, exported)
        parts = _Parts(data, calls, images, subject.data.seed)
        measured = engine.Data(
            calibration=parts.calibration(),
            compared=parts.compared(),
            held_out=parts.held_out() if settings.max_drop is not None else None,
            test=parts.test(),
            tuning=tuning_of(
                model, course, lambda how: _lessons(subject, how, calls, report or Silent())
            ),
        )
        result = engine.quantize(
            exported.path, Path(path), measured, settings, began=began, progress=stage
        )
    if subject.run is not None:
        result.write(subject.run.path / RECORD)
    return result


def _lessons(subject: Subject, course: Course, calls: Calls, report: Reporter) -> OfRun:
    """The data of a run as its training has it."""
    assert subject.data is not None
    assert subject.training is not None
    of_training = dataclasses.replace(subject.data, augment=subject.training.augment)
    return OfRun(
        subject.training, make_data(of_training), calls.feeds, subject.run, report,
        name=subject.request.name if subject.run is None else subject.run.path.name,
        epochs=course.epochs, parts=calls.parts(subject.data.batch_size),
    )  # fmt: skip
