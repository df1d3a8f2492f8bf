"""Targets for a budget: of weights, of multiplications, or of milliseconds on this machine.

A time is that of one sample on one thread in ONNX Runtime. What the layers with sparse kernels take
comes from the cost model, whose constants ``st3fx bench --calibrate`` measures. Two runs of this
very model fit it to the machine as it is now: dense, and with nine of ten weights zero in each
layer. With ``d`` and ``s`` what the cost model says of the layers of these, ``D`` and ``S`` what
they take, a model whose layers take ``x`` by the cost model takes ``a·x + b``:
``a = (D − S) / (d − s)`` is how fast the machine is, ``b = D − a·d`` is all else, which stays as it
is whatever the zeros.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from st3fx import runtime
from st3fx.api import fold
from st3fx.commands.export import export_onnx
from st3fx.errors import (
    BenchError,
    EmptyLayerWarning,
    MethodError,
    StateError,
    TargetWarning,
    TrainError,
)
from st3fx.files.atomic import check_file, replace_file, scratch
from st3fx.files.ours import says
from st3fx.methods.base import ScheduledMethod
from st3fx.modules.copying import copied
from st3fx.passes.onnx.sparse_kernels.times import GraphTimes
from st3fx.runtime.calibration import environment, load_calibration
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.training.budgets import DIGITS, Budgets, allocate, made, within
from st3fx.training.sensitivity import SensitivityResult

Unit = Literal["weights", "macs", "ms"]

_SECONDS = 2.0
"""For which the two are run, by turns."""

_CALLS, _WARM = 10, 2
"""Calls of each at least, and those that warm it up."""


@dataclass(frozen=True)
class Times:
    """What a model takes on this machine, for one sample on one thread.

    Attributes:
        graph: Its layers, of which the cost model knows the time.
        dense: Milliseconds of the dense model, measured.
        factor: ``a``.
        rest: ``b``, in milliseconds.
        constants: Where the cost model's constants come from.
        cpu: The processor.
    """

    graph: GraphTimes
    dense: float
    factor: float
    rest: float
    constants: str
    cpu: str

    def milliseconds(self, nonzeros: Mapping[str, int]) -> float:
        """Of the model with so many nonzeros in its weights, by name."""
        return 1e3 * self.factor * self.graph.at(nonzeros) + self.rest


def fitted(graph: GraphTimes, dense: float, sparse: float, constants: str, cpu: str) -> Times:
    """The cost model for a machine on which a model takes so many milliseconds.

    Args:
        graph: Its layers, with their zeros.
        dense: Without sparse kernels.
        sparse: With them.
        constants: Where the cost model's constants come from.
        cpu: The processor.
    """
    slow, fast = 1e3 * graph.dense, 1e3 * graph.at({})
    factor = (dense - sparse) / (slow - fast) if slow > fast else 0.0
    rest = dense - factor * slow
    if factor <= 0 or rest < 0:  # the two say too little: all is in the layers
        factor, rest = dense / slow, 0.0
    return Times(graph, dense, factor, rest, constants, cpu)


@dataclass(frozen=True)
class BudgetResult:
    """What meets a budget.

    Attributes:
        unit: Of the budget.
        budget: What was asked for.
        sparsity: Over all weights of the sites.
        budgets: A target for each layer; ``None`` for one threshold over all.
        ms: Expected milliseconds; ``None`` where time is not the budget.
        dense_ms: Measured milliseconds of the dense model; likewise.
        cpu: What it was measured on; likewise.
        constants: Where the cost model's constants come from; likewise.
    """

    unit: Unit
    budget: float
    sparsity: float
    budgets: Budgets | None
    ms: float | None = None
    dense_ms: float | None = None
    cpu: str | None = None
    constants: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {"budgets": None if self.budgets is None else self.budgets.to_dict()}

    def _met(self) -> list[str]:
        """Lines of what these targets meet, and on which machine."""
        if self.ms is None:
            noun = "multiplications" if self.unit == "macs" else "weights"
            return [f"They leave {100 * (1 - self.budget):.3g} % of the {noun}."]
        return [
            f"For {self.budget:g} ms of one sample on one thread with sparse kernels.",
            f"Expected are {self.ms:.3g} ms, {self.dense_ms:.3g} ms dense ({self.cpu}).",
        ]

    def write(self, path: Path) -> None:
        """Write settings that ``st3fx train --config`` and ``--sparsity-of`` read.

        Raises:
            TrainError: When the file cannot be written.
        """
        text = (
            "# Written by st3fx sensitivity: one threshold for all layers.\n"
            + "".join(f"# {line}\n" for line in self._met())
            + f"sparsity = {round(self.sparsity, DIGITS)}\n"
            if self.budgets is None
            else self.budgets.to_toml(self._met())
        )
        try:
            replace_file(path, lambda file: file.write(text.encode()))
        except OSError as error:
            raise TrainError(f"cannot write {path}: {error.strerror or error}") from error


def for_share(found: SensitivityResult, share: float, unit: Unit) -> BudgetResult:
    """Targets that raise the loss least at a sparsity of weights or multiplications.

    Raises:
        MethodError: As ``allocate``.
    """
    budgets = allocate(found, share, macs=unit == "macs")
    return BudgetResult(unit, share, budgets.sparsity, budgets)


def for_time(found: SensitivityResult, times: Times, budget: float) -> BudgetResult:
    """Targets of the lowest sparsity that meets a time, at which the loss rises least.

    Raises:
        MethodError: Where the highest sparsities that were measured do not meet it.
    """

    def cost(targets: Sequence[float]) -> float:
        return times.milliseconds({
            layer.name: round(layer.weights * (1 - target))
            for layer, target in zip(found.layers, targets, strict=True)
        })  # fmt: skip

    targets = within(found, cost, budget)
    if targets is None:
        most = cost([max(p.sparsity for p in layer.points) for layer in found.layers])
        raise MethodError(_too_short(budget, most, times))
    share = sum(
        layer.weights * target for layer, target in zip(found.layers, targets, strict=True)
    ) / found.weights  # fmt: skip
    budgets = made(found, targets, share)
    ms = cost(list(budgets.targets.values()))
    return _timed(budget, budgets.sparsity, budgets, ms, times)


def for_time_together(model: nn.Module, times: Times, budget: float) -> BudgetResult:
    """The lowest sparsity of one global threshold that meets a time.

    Args:
        model: Converted; it is left with other thresholds.
        times: Of it.
        budget: In milliseconds.

    Raises:
        StateError: When its thresholds are learned.
        MethodError: Where no sparsity meets it.
    """
    sparsifier = Sparsifier(model.cpu())
    method = sparsifier.method
    if not isinstance(method, ScheduledMethod):
        raise StateError(f"{method.name} learns its thresholds: no sparsity can be set")

    def cost(sparsity: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptyLayerWarning)  # most of them are only tried
            sparsifier.set_sparsity(sparsity)
        weights = sparsifier.effective_weights()
        return times.milliseconds({k: int(w.count_nonzero()) for k, w in weights.items()})

    low, high = 0.0, min(_MOST, method.granularity.most)
    if cost(low) <= budget:
        high = low
    elif (least := cost(high)) > budget:
        raise MethodError(_too_short(budget, least, times))
    while high - low > _STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= budget else (middle, high)
    high = min(round(high + _STEP / 2, 4), method.granularity.most) if high else 0.0
    return _timed(budget, high, None, cost(high), times)


_MOST, _STEP = 0.99, 1e-4


def _timed(
    budget: float, sparsity: float, budgets: Budgets | None, ms: float, times: Times
) -> BudgetResult:
    return BudgetResult(
        "ms", budget, sparsity, budgets, ms, times.dense, times.cpu, times.constants
    )


def _too_short(budget: float, least: float, times: Times) -> str:
    return (
        f"{budget:g} ms cannot be met: {least:.3g} ms are expected at the highest sparsities, and "
        f"the dense model takes {times.dense:.3g} ms here; try higher ones, or a smaller model"
    )


def times_of(model: nn.Module, example: Any, progress: Callable[[str], None]) -> Times:
    """Export a model, run it dense and sparse, and fit the cost model to that.

    Args:
        model: Converted; it is left as it was.
        example: One call of it.
        progress: Called with the name of each stage as it begins.

    Raises:
        BenchError: Where no layer has a sparse kernel.
        ExportError: As ``export_onnx``.
        NativeError: As ``st3fx.runtime.session``.
    """
    one = pytree.tree_map(
        lambda value: value[:1].cpu() if isinstance(value, torch.Tensor) and value.dim() else value,
        example,
    )
    calibration = load_calibration()
    with scratch() as folder:
        exported = export_onnx(
            _nine_of_ten_zero(model), one, folder / "model.sparse.onnx", sparse_kernels=True,
            verify=False, eliminate_dead_channels=False, progress=progress,
        )  # fmt: skip
        assert exported.plain is not None
        graph = GraphTimes.of_file(exported.plain, calibration.costs)
        if not graph.names:
            raise BenchError(
                "no layer of the model has a sparse kernel: a time cannot be its budget"
            )
        progress("running the model dense and sparse")
        dense, sparse = _measure((exported.plain, exported.path), one)
    return fitted(graph, dense, sparse, calibration.source, str(environment()["cpu"]))


_ZEROS = 0.9


@torch.no_grad()
def _nine_of_ten_zero(model: nn.Module) -> nn.Module:
    """A folded copy in which only the largest tenth of each site's weights is left."""
    names = [site.name for site in Sparsifier(model).plan.sites]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TargetWarning)  # it is about the zeros that it has
        plain = fold(copied(model).cpu(), inplace=True)
    held = dict(plain.named_parameters(remove_duplicate=False))
    for weight in (held[name] for name in names if name in held):
        gone = round(_ZEROS * weight.numel())
        if gone:
            level = weight.abs().reshape(-1).kthvalue(gone).values
            weight[weight.abs() <= level] = 0
    return plain


def _measure(files: Sequence[Path], example: Any) -> list[float]:
    """Median milliseconds of a call of each file on one thread, by turns."""
    sessions = [runtime.session(path, 1) for path in files]
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)]
    ports = sessions[0].get_inputs()
    feed = {port.name: each.numpy() for port, each in zip(ports, tensors, strict=False)}
    taken: list[list[float]] = [[] for _ in files]
    began, calls = time.perf_counter(), 0
    while calls < _CALLS or time.perf_counter() - began < _SECONDS:
        for session, times in zip(sessions, taken, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            times.append(time.perf_counter() - start)
        calls += 1
    return [1e3 * statistics.median(times[_WARM:]) for times in taken]


_SIGN = b"# Written by st3fx sensitivity"


def check_output(path: Path, *, force: bool) -> Path:
    """Where targets are written, found to be possible now; an older file of them is replaced.

    Raises:
        TrainError: When the file cannot be written.
    """
    ours = says(path, _SIGN, len(_SIGN))
    return check_file(path, force=force or ours, error=TrainError, in_folder=True)
