"""What it costs to prune each layer alone: plain data that is written and read, and its measuring.

All sites stay as they are but one, which gets a threshold of its own for each sparsity in turn, by
the method and in the groups that the model was converted for; the model is scored on the same
samples each time. Of a method that learns its thresholds, and of a frozen model, the smallest of
the weights that are left go.

What a layer costs is the mean, over the sparsities, by which the loss rises.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.errors import DataError, MethodError, TrainError
from st3fx.files.atomic import replace_file
from st3fx.files.reading import Count, Format, Share, Size, Some, sealed
from st3fx.methods.base import Method, ScheduledMethod, check_sparsity
from st3fx.modules.marks import state_name
from st3fx.plan.sites import Site
from st3fx.sparsifier.bound import Bound
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.sparsity.formula import INACTIVE
from st3fx.sparsity.granularity import magnitudes
from st3fx.sparsity.threshold.search import GlobalThreshold
from st3fx.training.evaluate import call, sums

FORMAT = "st3fx-sensitivity"
FORMAT_VERSION = 1

FILE = Format(TrainError, "write it anew by st3fx sensitivity")

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
"""Which are tried if nothing is said."""

Batch = tuple[Any, Tensor]
"""What a model is called with, and the right classes."""


@dataclass(frozen=True)
class Point:
    """One layer at one sparsity.

    Attributes:
        sparsity: What was asked for.
        zeros: Weights of the layer that are zero then.
        loss: Mean cross entropy of the model.
        top1: Share of samples whose best class is right.
        loss_rise: By how much the loss is higher than before.
        top1_drop: By how much the accuracy is lower than before.
    """

    sparsity: Share
    zeros: Count
    loss: Size
    top1: Share
    loss_rise: float
    top1_drop: float


@dataclass(frozen=True)
class LayerSensitivity:
    """A layer.

    Attributes:
        name: Full name of its weight.
        shape: Of its weight.
        op: What multiplies with it.
        weights: How many it has.
        zeros: How many of them are zero in the model as it is.
        cost: How often each multiplies in one call of the model's example.
        points: By rising sparsity.
    """

    name: str
    shape: tuple[int, ...]
    op: str
    weights: Some
    zeros: Count
    cost: Some
    points: tuple[Point, ...]

    @property
    def rise(self) -> float:
        """What it costs: the mean rise of the loss over the sparsities."""
        return sum(point.loss_rise for point in self.points) / max(1, len(self.points))

    @property
    def drop(self) -> float:
        """The mean drop of the accuracy over the sparsities."""
        return sum(point.top1_drop for point in self.points) / max(1, len(self.points))


@dataclass(frozen=True)
class SensitivityResult:
    """All layers, in the order of execution.

    Attributes:
        model: A short name for what was measured.
        data: On which data.
        samples: How many of its test samples.
        method: By which layers were pruned, with what is pruned together.
        sparsity: Share of zeros in the sites before.
        loss: Mean cross entropy before.
        top1: Share of samples whose best class is right before.
        seconds: How long it took.
        layers: The sites.
    """

    model: str
    data: str
    samples: Some
    method: str
    sparsity: Share
    loss: Size
    top1: Share
    seconds: Size
    layers: tuple[LayerSensitivity, ...]

    @property
    def by_cost(self) -> tuple[LayerSensitivity, ...]:
        """The layers, those that cost most first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.rise))

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Those that were tried."""
        return tuple(dict.fromkeys(p.sparsity for layer in self.layers for p in layer.points))

    @property
    def weights(self) -> int:
        """Of all sites."""
        return sum(layer.weights for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiplications of all sites in one call of the example, before anything is pruned."""
        return sum(layer.weights * layer.cost for layer in self.layers)

    def saved(self, layer: LayerSensitivity, zeros: int) -> tuple[float, float]:
        """What so many zeros of a layer save: shares of all sites' weights, and of their MACs."""
        return zeros / self.weights, zeros * layer.cost / self.macs

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        layers = [
            {**dataclasses.asdict(layer), "shape": list(layer.shape),
             "points": [dataclasses.asdict(point) for point in layer.points]}
            for layer in self.layers
        ]  # fmt: skip
        plain = {**dataclasses.asdict(self), "layers": layers}
        return sealed({"format": FORMAT, "format_version": FORMAT_VERSION, **plain})

    def write(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all; one that is there is replaced.

        Raises:
            TrainError: When it cannot be written.
        """
        content = (json.dumps(self.to_dict(), indent=1) + "\n").encode()
        try:
            replace_file(Path(path), lambda file: file.write(content))
        except OSError as error:
            raise TrainError(f"cannot write {path}: {error.strerror or error}") from error


def read_sensitivity(path: str | Path) -> SensitivityResult:
    """Read what :meth:`SensitivityResult.write` wrote.

    Raises:
        TrainError: When it is missing, damaged, something else, or from a newer version.
    """
    data = FILE.json(FILE.content(path), path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TrainError(f"{path} is not the result of st3fx sensitivity")
    version = data.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise TrainError(
            f"{path} has format {version!r}, and this st3fx reads up to {FORMAT_VERSION}: "
            "upgrade st3fx"
        )
    data = FILE.unsealed(data, path)
    plain = {key: data[key] for key in data if key not in ("format", "format_version")}
    return FILE.build(plain, SensitivityResult, path)


def check_sparsities(sparsities: Sequence[float], method: Method) -> tuple[float, ...]:
    """Those to try, by rising value, none twice.

    Raises:
        MethodError: For none, for one outside [0, 1), or for more than N of M can have.
    """
    if not sparsities:
        raise MethodError("no sparsity to try: give some, for example 0.5, 0.9")
    for sparsity in sparsities:
        check_sparsity(sparsity)
        if sparsity > method.granularity.most:
            raise MethodError(
                f"sparsity {sparsity} is more than {method.granularity.text} has: give "
                f"{method.granularity.most:.4g} or less"
            )
    return tuple(sorted(set(sparsities)))


def measure(
    model: nn.Module,
    batches: Sequence[Batch],
    sparsities: Sequence[float],
    *,
    name: str,
    data: str,
    progress: Callable[[str], None],
) -> SensitivityResult:
    """Prune each site alone, and score the model each time.

    Args:
        model: Converted. Afterwards its thresholds and masks are no use any more: give a copy.
        batches: Test samples, on the model's device; scored as often as there are sites and
            sparsities.
        sparsities: Which to try.
        name: Of the model.
        data: Of the data.
        progress: Called with a line that says how far it is, and how long it will take yet.

    Raises:
        MethodError: As :func:`check_sparsities`.
        DataError: When there is no sample.
        TrainError: When the model does not give logits, or its loss is no number before.
    """
    began = time.perf_counter()
    sparsifier = Sparsifier(model)
    wanted = check_sparsities(sparsities, sparsifier.method)
    model.eval()
    weights = sparsifier.effective_weights()  # with thresholds that fit
    bound = sparsifier.run.bound()
    zeros = {k: w.numel() - int(w.count_nonzero()) for k, w in weights.items()}
    # From here on nothing sets thresholds but this.
    sparsifier.run.frozen = True
    progress("scoring the model as it is")
    before = score(model, batches)
    rows, done = [], 0
    for item in bound:
        points = []
        for sparsity in wanted:
            progress(_line(item.site.name, done, len(bound) * len(wanted), began))
            with _pruned(item, sparsity, sparsifier.method, weights[item.site.name]) as left:
                after = score(model, batches, strict=False)
            points.append(Point(
                sparsity, item.site.numel - left, after[0], after[1], after[0] - before[0],
                before[1] - after[1],
            ))  # fmt: skip
            done += 1
        site = item.site
        rows.append(LayerSensitivity(
            site.name, site.shape, site.op, site.numel, zeros[site.name], site.cost, tuple(points)
        ))  # fmt: skip
    whole = sum(layer.weights for layer in rows)
    return SensitivityResult(
        name, data, sum(len(targets) for _, targets in batches), sparsifier.plan.method_text,
        sum(zeros.values()) / max(1, whole), *before, time.perf_counter() - began, tuple(rows),
    )  # fmt: skip


def _line(name: str, done: int, total: int, began: float) -> str:
    said = f"{name}: evaluation {done + 1:,} of {total:,}"
    if not done:
        return said
    left = (time.perf_counter() - began) / done * (total - done)
    return f"{said}, about {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


class _pruned:  # noqa: N801 (used as a function)
    """Within, a site has a sparsity of its own; gives how many of its weights are left."""

    def __init__(self, item: Bound, sparsity: float, method: Method, effective: Tensor) -> None:
        self._item, self._sparsity, self._method = item, sparsity, method
        self._effective = effective
        self._before = [
            {key: module.__dict__.get(state_name(name, key)) for key in ("threshold", "mask")}
            for module, name in item.places
        ]

    @torch.no_grad()
    def __enter__(self) -> int:
        item, method = self._item, self._method
        if isinstance(method, ScheduledMethod) and not item.tensors("mask")[0].numel():
            value = own_threshold(item.site, item.searched(), self._sparsity, method)
            for module, name in item.places:
                module.__dict__[state_name(name, "threshold")] = value.to(item.weight().device)
        else:
            mask = smallest_gone(self._effective, self._sparsity, method, item.site)
            for module, name in item.places:
                module.__dict__[state_name(name, "mask")] = mask
        return int(item.static().count_nonzero())

    def __exit__(self, *error: object) -> None:
        for (module, name), known in zip(self._item.places, self._before, strict=True):
            for key, value in known.items():
                if value is not None:
                    module.__dict__[state_name(name, key)] = value


def own_threshold(site: Site, weight: Tensor, sparsity: float, method: ScheduledMethod) -> Tensor:
    """The threshold with which a site alone has a sparsity: exact to one weight or group.

    Of a method whose thresholds are of probabilities ``weight`` are these.
    """
    if sparsity == 0:
        return torch.tensor(INACTIVE, dtype=torch.float32)
    finder = GlobalThreshold()
    share = method.share_of_groups(sparsity)
    grouping = method.granularity.grouping(site)
    level = finder.find([weight], [method.scale(site)], share, None, [grouping])
    own = finder.ties.get(0)
    return method.level_of(site, level, weight.dtype) if own is None else own


def smallest_gone(effective: Tensor, sparsity: float, method: Method, site: Site) -> Tensor:
    """A mask that keeps the largest effective weights; what is zero already stays so."""
    constants = method.granularity.constants(site)
    scores = magnitudes(effective, *constants) if constants else effective.abs()
    gone = round(sparsity * scores.numel())
    if not gone:
        return effective != 0
    return (scores > scores.reshape(-1).kthvalue(gone).values) & (effective != 0)


@torch.no_grad()
def score(
    model: nn.Module, batches: Sequence[Batch], *, strict: bool = True
) -> tuple[float, float]:
    """Mean cross entropy, and the share of samples whose best class is right.

    Raises:
        DataError: When there is no sample.
        TrainError: When the model gives no logits, or, if ``strict``, no finite loss.
    """
    total = torch.zeros(4, dtype=torch.float64)
    for inputs, targets in batches:
        total += sums(call(model, inputs).float(), targets).to(total)
    loss, right, _, samples = total.tolist()
    if not samples:
        raise DataError("there is no test sample to score the model on")
    if not math.isfinite(loss):
        if strict:
            raise TrainError(f"the loss of the model on the test data is {loss}")
        loss = samples * _LARGEST  # what overflows costs most
    return loss / samples, right / samples


_LARGEST = 1e6
