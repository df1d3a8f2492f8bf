"""One trained model at many sparsities: ``st3fx sweep``.

All sparsities come from the same latent weights. A run is scored as its training did it: the same
test data, and batch norm's statistics from the same batches, so that the row of the run's own
sparsity is what the training has reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from st3fx import methods
from st3fx.api import fold
from st3fx.bench.bench_result import BenchRow
from st3fx.bench.variant import BenchSettings
from st3fx.commands.analyze import count_flops
from st3fx.commands.bench import as_json, known, ran_on, run_all
from st3fx.commands.convert import restored, save_bundle
from st3fx.commands.progress import silent
from st3fx.commands.quantize import quantize
from st3fx.commands.scorer import Scorer, Source, find, on_cpu, require_reachable
from st3fx.commands.subjects import SPARSE, SPARSE_INT8, Subject, from_model, with_int8
from st3fx.commands.train import data_settings
from st3fx.data import Data, make_data
from st3fx.errors import (
    EmptyLayerWarning,
    SweepError,
)
from st3fx.export.export_result import Size
from st3fx.export.weights import size_of_files, size_of_tensors
from st3fx.files.atomic import check_file, check_place, replace_file, scratch
from st3fx.files.compact import save_compact
from st3fx.files.manifest import Recipe
from st3fx.files.ours import BUNDLE
from st3fx.files.tensor_file import to_bytes
from st3fx.methods.base import ScheduledMethod
from st3fx.modules.marks import change_conversion, conversion_of, is_state
from st3fx.modules.state import preserved_rng, seed_everything
from st3fx.plan.example import Example
from st3fx.report.page import check_folder, check_target, write_all
from st3fx.report.png import to_png
from st3fx.report.sweep_page import CHARTS, GENERATOR, charts, command, make_sweep_page
from st3fx.report.sweep_result import (
    FORMAT,
    Condition,
    Picked,
    Speed,
    SweepResult,
    SweepRow,
    check_sparsities,
    share,
)
from st3fx.sparsifier.run import run_of
from st3fx.training.folder import RunFolder
from st3fx.training.method import layer_sparsity
from st3fx.version import VERSION

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
"""Where nothing else is asked for."""

SECONDS = 3.0
"""Of timed calls for each file: there are many of them."""

INT8_IMAGES = 256
"""Training samples that ranges of activations are taken from."""

PICKED = ("model.st3fx", "folded.safetensors", "model.st3w")
"""What is written of the sparsity that is picked."""


def sweep(
    source: str | Path,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    calibrate: int | None = None,
    bench: bool | BenchSettings = True,
    int8: bool = False,
    pick: str | None = None,
    into: str | Path | None = None,
    page: str | Path | None = None,
    pictures: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    force: bool = False,
    trust: bool = False,
    model: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> SweepResult:
    """Score, count and time one trained model at several sparsities, without training it again.

    Each is set from the same latent weights; batch norm takes its statistics anew from training
    batches. Written are a page and beside it the same as JSON, and what ``pick`` has chosen.

    Args:
        source: The folder of a run that has ended, or a bundle.
        sparsities: Shares of weights to prune, in any order; the model's own is added.
        calibrate: Training batches for the statistics of batch norm; ``None``: as many as in
            training (16 for a bundle), 0: those of training stay.
        bench: Whether, or how, times are measured.
        int8: Quantize each after training, and score and time it in 8-bit integers too.
        pick: A condition such as ``drop<0.5`` (:class:`st3fx.report.sweep_result.Condition`): the
            sparsest row that holds it is written, folded and as a bundle.
        into: The folder for that; by default ``picked`` in the run, or beside the bundle.
        page: The page; by default ``sweep.html`` in the run, or ``NAME.sweep.html`` beside the
            bundle.
        pictures: A folder for the charts as PNG files.
        data: Settings of a training that say which data: ``data``, ``data_path``, ``workers``,
            ``channels``, ``image_size``.
        force: Replace files that no sweep wrote, and what was picked before.
        trust: Run the code that a run or a bundle names, and remember that for the folder.
        model: A SPEC to build the model from, instead of the one that the bundle names.
        progress: Called with what is under way.

    Raises:
        SweepError: When the model has one sparsity only, there is no data, or nothing holds
            ``pick``: the page is written all the same.
        St3fxError: As ``load_bundle``, ``make_data``, ``export_onnx`` and ``benchmark``.
    """
    wanted, report = check_sparsities(sparsities), progress or silent
    if calibrate is not None and calibrate < 0:
        raise SweepError(f"calibrate = {calibrate}: give a number of training batches, 0 or more")
    condition = None if pick is None else Condition.parse(pick)
    if condition is not None and condition.needs_bench and bench is False:
        raise SweepError(f"--pick {condition.text} needs times: leave --no-bench out")
    found = find(source, data, trust=trust)
    target = Path(page) if page else found.page
    folder = None if pictures is None else check_folder(Path(pictures))
    _check_files(target, folder, force=force)
    place = Path(into) if into else target.parent / "picked"
    if condition is not None:
        _check_picked(place, force=force)
    settings = None
    if bench is not False:
        settings = BenchSettings(seconds=SECONDS) if bench is True else bench
    with _scorer(found, calibrate, report, trust=trust, model=model) as (scorer, read, recipe):
        own, method = run_of(scorer.model).sparsity or 0.0, scorer.sparsifier.method
        assert isinstance(method, ScheduledMethod)
        require_reachable(found.named, method, own, wanted)
        result, folded = _rows(found, scorer, read, _with_own(wanted, own), own, report)
        if settings is not None or int8:
            result = _speeds(result, folded, scorer, read, settings, report, int8=int8)
        words = _words(found, wanted, calibrate, settings, pick, into, data, int8=int8)
        result = dataclasses.replace(result, command=words)
        row, missed = None, None
        if condition is not None:
            try:
                row = condition.pick(result)
            except SweepError as error:
                missed = error
        if row is not None and condition is not None:
            report("write")
            scorer.set(row.sparsity)
            files = _write_picked(scorer.model, recipe, row.sparsity, place, force=force)
            picked = Picked(condition.text, row.sparsity, place, files)
            result = dataclasses.replace(result, picked=picked)
    report("draw")
    result = dataclasses.replace(result, page=target)
    _write(result, target, folder)
    if missed is not None:
        raise SweepError(f"{missed}. The page is {target} all the same") from missed
    return result


@contextlib.contextmanager
def _scorer(
    found: Source,
    calibrate: int | None,
    report: Callable[[str], None],
    *,
    trust: bool,
    model: str | None,
) -> Iterator[tuple[Scorer, Data, Recipe]]:
    report("data")
    read = make_data(data_settings(found.settings, found.bundle, found.permit))
    report("load")
    with warnings.catch_warnings():
        # Rows name empty layers themselves.
        warnings.simplefilter("ignore", EmptyLayerWarning)
        built = restored(found.bundle, trust=trust, model=model)
        recipe = built.recipe if model is not None else found.bundle.manifest.recipe
        scorer = Scorer(found, read, built.model, calibrate)
        try:
            yield scorer, read, recipe
        finally:
            scorer.close()


def _with_own(sparsities: Sequence[float], own: float) -> tuple[float, ...]:
    """Those that are asked for, and the model's own; where it is one of them, exactly that."""
    others = [value for value in sparsities if abs(value - own) > 1e-9]
    return tuple(sorted((*others, own)))


def _rows(
    found: Source,
    scorer: Scorer,
    data: Data,
    sparsities: Sequence[float],
    own: float,
    report: Callable[[str], None],
) -> tuple[SweepResult, list[nn.Module]]:
    """Scores, counts and bytes, and the folded model of each row."""
    plan, example = scorer.sparsifier.plan, data.example(2)
    rows, folded, samples, dense = [], [], 0, 0
    before = _size(scorer.model)
    for sparsity in sparsities:
        report(f"evaluating at {share(sparsity)}")
        scorer.set(sparsity)
        scores = scorer.score()
        layers = layer_sparsity(scorer.sparsifier)
        report(f"counting at {share(sparsity)}")
        folded.append(fold(scorer.model).to("cpu").eval())
        flops = count_flops(folded[-1], example, batch=1)
        left = sum(round((1 - layers[site.name]) * site.numel) for site in plan.sites)
        samples, dense = scores.samples, flops.dense_macs
        rows.append(SweepRow(
            sparsity=sparsity, own=sparsity == own, zeros=1 - left / plan.numel, nonzeros=left,
            top1=scores.top1, top5=scores.top5, loss=scores.loss, macs=flops.sparse_macs,
            bytes=_compact_bytes(folded[-1]),
            empty=tuple(name for name, zeros in layers.items() if zeros == 1),
        ))  # fmt: skip
    method = scorer.sparsifier.method
    assert isinstance(method, ScheduledMethod)
    result = SweepResult(
        name=found.run.path.resolve().name if found.run else found.name,
        source=Path(found.named), spec=found.bundle.manifest.recipe.spec, method=plan.method_text,
        data=data.name, samples=samples, budget=method.budget, drawn=method.schedule.draw,
        calibration=scorer.calibration, weights=plan.numel, dense_macs=dense,
        dense_bytes=before.raw, rows=tuple(rows),
    )  # fmt: skip
    return result, folded


def _size(model: nn.Module) -> Size:
    own = {key: value for key, value in model.state_dict().items() if not is_state(key)}
    return size_of_tensors("weights before", own)


def _compact_bytes(folded: nn.Module) -> int:
    with scratch() as folder:
        path = folder / "folded.st3w"
        save_compact(folded.state_dict(), path)
        return size_of_files("compact file", [path]).raw


def _speeds(
    result: SweepResult,
    folded: Sequence[nn.Module],
    scorer: Scorer,
    data: Data,
    settings: BenchSettings | None,
    report: Callable[[str], None],
    *,
    int8: bool,
) -> SweepResult:
    """With what is measured side by side, and in integers."""
    chosen, example = known(settings or BenchSettings()), Example.of(on_cpu(data.example(2)))
    rows, subjects = list(result.rows), list[Subject]()
    with scratch() as folder:
        for index, model in enumerate(folded):
            name, place = rows[index].name, RunFolder(folder / str(index))
            place.path.mkdir()
            if int8:
                report(f"quantizing at {name}")
                top1 = _quantized(model, scorer, data, place.int8)
                rows[index] = dataclasses.replace(rows[index], int8_top1=top1)
            if settings is None:
                continue
            report(f"exporting at {name}")
            subject = from_model(model, example, place.path / "model.onnx", chosen, silent,
                                 fixed_batch=False, given=False)  # fmt: skip
            if int8:
                subject = with_int8(subject, place, place.path, chosen, silent)
            subjects.append(dataclasses.replace(subject, name=name))
        if settings is None:
            return dataclasses.replace(result, rows=tuple(rows))
        measured, used = run_all(subjects, chosen, folder, report)
    return with_speeds(result, rows, measured, as_json(used))


def with_speeds(
    result: SweepResult, rows: list[SweepRow], measured: list[BenchRow], settings: dict[str, Any]
) -> SweepResult:
    """A result with what a benchmark of its rows has found."""
    first = (measured[0].batch, measured[0].threads)
    here = [row for row in measured if (row.batch, row.threads) == first]
    alone = len(rows) == 1
    for index, row in enumerate(rows):
        plain = "folded" if alone and any(r.name == "folded" for r in here) else row.name
        plain = here[0].name if alone and plain == row.name else plain
        prefix = "" if alone else f"{row.name}, "
        rows[index] = dataclasses.replace(
            row,
            speed=_fastest(here, (plain, f"{prefix}{SPARSE}")),
            int8_speed=_fastest(here, (f"{prefix}{SPARSE_INT8}", f"{prefix}dense INT8")),
        )
    dense = [row for row in here if row.integers and not row.skips_zeros]
    return dataclasses.replace(
        result,
        rows=tuple(rows),
        dense=_speed(here[0]),
        dense_int8=_speed(dense[0]) if dense else None,
        bench={
            "settings": settings,
            "environment": ran_on(measured),
            "rows": [dataclasses.asdict(row) for row in measured],
        },
    )


def _fastest(rows: Sequence[BenchRow], names: Sequence[str]) -> Speed | None:
    """The fastest of the rows that have one of these names."""
    found = [row for row in rows if row.name in names]
    return _speed(min(found, key=lambda row: row.median_ms)) if found else None


def _speed(row: BenchRow) -> Speed:
    return Speed(row.median_ms, row.ratio, row.name)


def _quantized(model: nn.Module, scorer: Scorer, data: Data, path: Path) -> float:
    """Write a model in 8-bit integers; its accuracy on the test data."""
    result = quantize(
        model, _calibration(data), path, rank=False,
        evaluate=scorer.top1_of,
    )  # fmt: skip
    assert result.accuracy is not None
    return result.accuracy.int8


def _calibration(data: Data) -> Iterator[Any]:
    """Inputs of training samples, as many as ranges need."""
    seen = 0
    with preserved_rng():
        seed_everything(0)
        data.set_epoch(0)
        for inputs, targets in data.train:
            yield on_cpu(inputs)
            seen += len(targets)
            if seen >= INT8_IMAGES:
                return


def _check_files(page: Path, pictures: Path | None, *, force: bool) -> None:
    """Fail early if page, JSON or pictures would replace what no sweep wrote."""
    if page.suffix == ".json":
        raise SweepError(f"{page}: name the page, e.g. sweep.html; the JSON file goes beside it")
    check_target(page, force=force, generator=GENERATOR, noun="page of a sweep")
    json_file = page.with_suffix(".json")
    check_target(json_file, force=force, generator=FORMAT, noun="result of a sweep")
    for picture in () if pictures is None else (pictures / f"{key}.png" for key in CHARTS):
        if picture.parent.is_dir():
            check_target(picture, force=force, generator=GENERATOR, noun="picture of a sweep")


def _check_picked(folder: Path, *, force: bool) -> None:
    """Fail early if what is picked cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise SweepError(f"{folder} is a file: name a folder for what is picked")
    there = [name for name in PICKED if (folder / name).exists()]
    if there and not force:
        raise SweepError(
            f"{folder / there[0]} exists: choose another --into, or replace it by --force"
        )
    check_place(folder / PICKED[0], SweepError)
    for name in PICKED[1:]:
        check_file(folder / name, force=True, error=SweepError)


def _write_picked(
    model: nn.Module, recipe: Recipe, sparsity: float, folder: Path, *, force: bool
) -> dict[str, int]:
    """The model at a sparsity as a bundle, and its folded weights in both formats."""
    model = model.to("cpu")
    method = conversion_of(model).method
    assert isinstance(method, ScheduledMethod)
    if method.granularity.most == 1:
        schedule = dataclasses.replace(method.schedule, draw=None)
        method = dataclasses.replace(method, sparsity=sparsity, schedule=schedule)
        plan = dataclasses.replace(conversion_of(model).plan, target=sparsity)
        change_conversion(model, method=method, plan=plan)
        recipe = dataclasses.replace(recipe, method=methods.to_dict(method))
    state = {k: v.clone().contiguous() for k, v in fold(model).state_dict().items()}
    content = to_bytes(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_bundle(model, recipe, folder / PICKED[0], force=force)
        replace_file(folder / PICKED[1], lambda file: file.write(content))
    except OSError as error:
        raise SweepError(f"cannot write {folder}: {error.strerror or error}") from error
    save_compact(state, folder / PICKED[2])
    return {name: _bytes(folder / name) for name in PICKED}


def _bytes(path: Path) -> int:
    """Of a file, or of what is ours in a bundle."""
    files = (path / name for name in BUNDLE) if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _write(result: SweepResult, target: Path, pictures: Path | None) -> None:
    text = json.dumps(result.to_dict(), indent=1)
    files = {} if pictures is None else {
        pictures / f"{chart.key}.png": to_png(chart, f"{GENERATOR} {VERSION}")
        for chart in charts(result)
    }  # fmt: skip
    page = make_sweep_page(result).encode()
    write_all({**files, target.with_suffix(".json"): f"{text}\n".encode(), target: page})


def _words(
    found: Source,
    sparsities: Sequence[float],
    calibrate: int | None,
    settings: BenchSettings | None,
    pick: str | None,
    into: str | Path | None,
    data: Mapping[str, Any] | None,
    *,
    int8: bool,
) -> str:
    """The command that does it again."""
    words = [found.named, "--sparsity", ",".join(f"{value:g}" for value in sparsities)]
    for name, value in (data or {}).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if calibrate is not None:
        words += ["--calibrate", str(calibrate)]
    if settings is None:
        words.append("--no-bench")
    else:
        for number in settings.threads:
            words += ["-ncores", str(number)]
        if settings.seconds != SECONDS:
            words += ["-t", f"{settings.seconds:g}"]
    words += [*(["--int8"] if int8 else []), *(["--pick", pick] if pick else [])]
    return command([*words, *(["--into", str(into)] if into else [])])
