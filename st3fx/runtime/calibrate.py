"""Measures the constants of the cost model: layers by both kernels, then least squares.

Each layer is a model of one node in a session with one thread. All are called in rounds, and the
fastest call counts: what else the machine does only ever adds time. The constants are those with
the smallest sum of squared relative errors that are not negative.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from st3fx.runtime.costs import Costs, dense_features, sparse_features
from st3fx.runtime.probes import Probe, probes

Array = npt.NDArray[np.float64]

ROUNDS = 5

_SECONDS = 0.004
"""Of calls of one layer in one round, and at least two."""


@dataclass(frozen=True)
class Fit:
    """Measured constants.

    Attributes:
        costs: The constants.
        error: Median over the layers of how far the model is from what was measured, as a share.
        layers: How many times were measured.
    """

    costs: Costs
    error: float
    layers: int


def calibrate(progress: Callable[[str], None]) -> Fit:
    """Measure the constants on this machine; takes about a minute.

    Args:
        progress: Called with what is under way.

    Raises:
        NativeError: The kernel library is missing.
    """
    measured = list(probes())
    best = np.full(len(measured), np.inf)
    for number in range(ROUNDS):
        progress(f"measuring {len(measured)} layers, round {number + 1} of {ROUNDS}")
        for index, probe in enumerate(measured):
            best[index] = min(best[index], _fastest(probe.call))
    return fit([(probe, float(best[index])) for index, probe in enumerate(measured)])


def fit(measured: Sequence[tuple[Probe, float]]) -> Fit:
    """The constants that explain measured seconds best.

    Args:
        measured: Layers, each with the seconds of a call.
    """
    found: dict[str, float] = {}
    errors: list[float] = []
    # Each kernel has its own constants; `call`, which several have, is that of the first.
    for kind in dict.fromkeys(probe.kind for probe, _ in measured):
        chosen = [(_features(probe), t) for probe, t in measured if probe.kind == kind]
        solved, error = _solve(chosen, found)
        found |= solved
        errors += error
    costs = dataclasses.replace(Costs(), **found)
    return Fit(costs, float(np.median(errors)), len(measured))


def _features(probe: Probe) -> Mapping[str, float]:
    if probe.work is None:
        return {"call": 1.0, "move": probe.nbytes}
    if probe.is_sparse:
        return sparse_features(probe.work, blocked=probe.blocked)
    return dense_features(probe.work)


def _solve(
    measured: Sequence[tuple[Mapping[str, float], float]], known: Mapping[str, float]
) -> tuple[dict[str, float], list[float]]:
    """Constants that are not known yet, and the relative error of each time."""
    names = sorted({name for features, _ in measured for name in features} - set(known))
    times = np.array([t for _, t in measured])
    rest = times - [sum(known.get(n, 0.0) * x for n, x in f.items()) for f, _ in measured]
    matrix = np.array([[features.get(name, 0.0) for name in names] for features, _ in measured])
    solution = nonnegative(matrix / times[:, None], rest / times)
    errors = np.abs(matrix @ solution - rest) / times
    return dict(zip(names, map(float, solution), strict=True)), errors.tolist()


def nonnegative(matrix: Array, target: Array) -> Array:
    """Least squares with no negative unknown: the most negative one becomes zero until none is."""
    left = list(range(matrix.shape[1]))
    while left:
        # Columns of one scale: they differ by many powers of ten.
        scale = np.abs(matrix[:, left]).max(axis=0) + 1e-300
        part = np.linalg.lstsq(matrix[:, left] / scale, target, rcond=None)[0] / scale
        if (part >= 0).all():
            solution = np.zeros(matrix.shape[1])
            solution[left] = part
            return solution
        left.pop(int(np.argmin(part * scale)))
    return np.zeros(matrix.shape[1])


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    call()
    began, best, count = time.perf_counter(), np.inf, 0
    while count < 2 or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        call()
        best, count = min(best, time.perf_counter() - start), count + 1
    return float(best)
