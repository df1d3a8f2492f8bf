"""What it costs to prune each layer alone: the verb of the facade that measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx import methods
from st3fx.api import convert
from st3fx.commands.convert import restored
from st3fx.commands.models import bundle_example, no_example
from st3fx.commands.progress import silent
from st3fx.commands.quantize import Subject
from st3fx.data import Data, make_data
from st3fx.data.guarded import following, guarded, heard
from st3fx.errors import DataError, StateError, TrainError
from st3fx.files.atomic import check_file
from st3fx.files.bundle import read_bundle
from st3fx.files.ours import says
from st3fx.loading.input_spec import parse_inputs
from st3fx.loading.spec import load_spec
from st3fx.loading.weights import load_weights
from st3fx.methods.base import Method
from st3fx.modules.copying import copied
from st3fx.modules.unwrap import make_permanent, unwrapped
from st3fx.passes.convert.fold import is_converted
from st3fx.report.page import check_target, make_document, write_all
from st3fx.report.sensitivity_sections import make_section
from st3fx.training.batches import Stream
from st3fx.training.sensitivity import (
    SPARSITIES,
    Batch,
    SensitivityResult,
    check_sparsities,
    measure,
)

IMAGES = 1024
"""Test samples that are scored if nothing is said."""


def sensitivity(
    model: nn.Module,
    test: Iterable[Any],
    sparsities: Sequence[float] = SPARSITIES,
    *,
    images: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> SensitivityResult:
    """Prune each layer alone, and see what that costs.

    All sites stay as they are but one, which gets each sparsity in turn, by the method and in the
    groups of the conversion, with a threshold of its own; ``model`` itself is left as it was.

    Args:
        model: What ``st3fx.convert`` gave, with trained weights.
        test: Pairs of inputs and targets, a data loader for one; read once and kept.
        sparsities: Which to try.
        images: How many samples are taken, the first; ``None``: all.
        progress: Called with a line that says how far it is, and how long it will take yet.

    Returns:
        Loss and accuracy of the model with each layer at each sparsity.

    Raises:
        StateError: When the model is not converted.
        MethodError: For a sparsity outside [0, 1), or above what N of M can have.
        DataError: When there is no sample.
        TrainError: When the model gives no logits, or its loss is no number.
    """
    plain = unwrapped(model)
    if not is_converted(plain):
        raise StateError(f"{type(plain).__name__} is not converted: give what st3fx.convert gave")
    twin = copied(plain)
    device = next(plain.parameters()).device
    batches = [_moved(batch, device) for batch in _first(test, images)]
    return measure(
        twin, batches, sparsities, name=type(plain).__name__, data="", progress=progress or silent
    )


def sensitivity_spec(
    of: Subject,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    method: Method | None = None,
    images: int | None = IMAGES,
    progress: Callable[[str], None] | None = None,
) -> SensitivityResult:
    """Measure the model of a run, a bundle or a SPEC on its test data.

    Args:
        of: Which model and data, as ``st3fx.commands.quantize.subject`` finds them.
        sparsities: Which to try.
        method: How a SPEC is converted; a bundle has its own.
        images: How many test samples, taken evenly from all of them; ``None``: all.
        progress: As for :func:`sensitivity`.

    Raises:
        TrainError: When there is no data.
        St3fxError: As :func:`sensitivity`, ``load_bundle``, ``load_spec`` and ``make_data``.
    """
    report = progress or silent
    if of.data is None or of.training is None:
        raise TrainError(
            f"no data for {of.request.spec}: name the run that it is from, or give --data"
        )
    own = method
    if own is None and of.request.is_bundle:
        own = methods.from_dict(read_bundle(of.request.spec).manifest.recipe.method)
    if own is not None:  # before any code of the model's runs
        check_sparsities(sparsities, own)
    found = load(of, method, report)
    assert found.data is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    skip = of.training.on_bad_sample == "skip"
    batches = [_moved(b, device) for b in _even(found.data, images, of.data.seed, skip=skip)]
    name = of.request.name if of.run is None else of.run.path.resolve().name
    return measure(
        found.model.to(device), batches, sparsities, name=name, data=found.data.name,
        progress=report,
    )  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A converted model.

    Attributes:
        model: With its weights.
        example: One call of it.
        data: That belongs to it; ``None`` where none is known.
    """

    model: nn.Module
    example: Any
    data: Data | None


def load(of: Subject, method: Method | None, progress: Callable[[str], None]) -> Loaded:
    """Load the model of a run or a bundle, or convert that of a SPEC.

    Args:
        of: Which.
        method: How a SPEC is converted.
        progress: Called with the name of each stage as it begins.

    Raises:
        SpecError: When no example of a call is known.
        St3fxError: As ``load_bundle``, ``load_spec`` and ``make_data``.
    """
    request = of.request
    progress("data")
    data = None if of.data is None else make_data(of.data)
    progress("load")
    given = parse_inputs(request.inputs, seed=request.seed) if request.inputs else None
    if request.is_bundle:
        bundle = read_bundle(request.spec)
        model = restored(bundle, trust=request.trust, model=request.model).model
        if given is None:
            given = bundle_example(bundle, trust=request.trust, model=request.model)
        return Loaded(model, given, data)
    shape = data.input_shape if data and data.input_shape and len(data.input_shape) == 3 else None
    loaded = load_spec(
        request.spec, seed=request.seed, with_inputs=given is None and data is None,
        num_classes=data.num_classes if data else None,
        in_channels=shape[0] if shape else None, image_size=shape[-1] if shape else None,
    )  # fmt: skip
    if request.weights is not None:
        load_weights(loaded.model, request.weights)
    make_permanent(loaded.model)
    if given is None:
        given = loaded.example_inputs if data is None else data.example(2)
    if given is None:
        raise no_example(request.spec, loaded)
    arguments: tuple[Any, ...] = () if method is None else (method,)
    model, _ = convert(
        loaded.model, given, *arguments, verify=False, inplace=True, progress=progress
    )
    return Loaded(model, given, data)


def _even(data: Data, images: int | None, seed: int, *, skip: bool) -> Iterator[Batch]:
    """Batches of the test data, or of so many samples that lie evenly in it.

    Sets are often sorted by class: the first samples would be of one. What stands in the place of
    bad samples is nothing.
    """
    try:
        whole: int | None = len(data.test.dataset)  # type: ignore[arg-type]
    except TypeError:
        whole = None
    name, seen = f"{data.name}, test data", 0
    stream = Stream(seed, 0)
    with stream.active():
        iterator = iter(guarded(data.test, skip=skip, train=False))
    number = 0
    while images is None or whole is not None or seen < images:
        with stream.active():
            batch = following(iterator, name, number)
        if batch is None:
            return
        number += 1
        told = heard(batch, name, skip=skip)
        if told.batch is None:
            continue
        inputs, targets = told.batch
        places = [k for k in range(len(targets)) if _takes(seen + k, images, whole)]
        seen += len(targets)
        if len(places) == len(targets):
            yield inputs, targets
        elif places:
            yield _at(inputs, places, len(targets)), targets[places]


def _takes(place: int, images: int | None, whole: int | None) -> bool:
    if images is None:
        return True
    if whole is None or images >= whole:
        return place < images
    return (place + 1) * images // whole > place * images // whole


def _at(inputs: Any, places: list[int], size: int) -> Any:
    """Some samples of a batch."""

    def chosen(value: Any) -> Any:
        fits = isinstance(value, Tensor) and value.dim() > 0 and len(value) == size
        return value[places] if fits else value

    return pytree.tree_map(chosen, inputs)


def _first(test: Iterable[Any], images: int | None) -> Iterator[Batch]:
    """Batches up to so many samples."""
    left = images
    for batch in test:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise DataError("the test data must give pairs of inputs and targets")
        inputs, targets = batch
        size = len(targets)
        if left is not None and size > left:
            places = list(range(left))
            inputs, targets = _at(inputs, places, size), targets[places]
        if len(targets):
            yield inputs, targets
        if left is not None:
            left -= len(targets)
            if left <= 0:
                return


def _moved(batch: Batch, device: torch.device) -> Batch:
    moved: Batch = pytree.tree_map(
        lambda value: value.to(device) if isinstance(value, Tensor) else value, batch
    )
    return moved


GENERATOR = "st3fx sensitivity"
"""Stands at the beginning of the page, which it may replace."""


def check_files(
    of: Subject, record: str | None, page: str | None, *, force: bool, reuse: bool = False
) -> tuple[Path | None, Path | None]:
    """Where the result and its page are written, found to be possible now.

    Args:
        of: Which model.
        record: The file that was asked for; else that of the run, if it is one.
        page: The page that was asked for.
        force: Replace files that this command did not write.
        reuse: The result is there already, and only read.

    Raises:
        TrainError: When a file cannot be written.
        ReportError: Likewise for the page.
    """
    path = Path(record) if record else None if of.run is None else of.run.sensitivity
    if path is not None and not reuse:
        ours = says(path, b'"st3fx-sensitivity"')
        check_file(path, force=force or ours, error=TrainError, in_folder=True)
    if page is None:
        return path, None
    return path, check_target(Path(page), force=force, generator=GENERATOR, noun="page of it")


def write_page(result: SensitivityResult, path: Path) -> None:
    """Write a result as one HTML file that needs nothing else.

    Raises:
        ReportError: When it cannot be written.
    """
    section = make_section(result)
    page = make_document(
        kind="Sensitivity of layers", title=f"{result.model}: sensitivity", name=result.model,
        about=f"{result.method}, on {result.data}", headline=(), sections=(section,),
        generator=GENERATOR,
    )  # fmt: skip
    write_all({path: page.encode()})
