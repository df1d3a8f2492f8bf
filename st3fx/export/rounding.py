"""What an output may be where only the order of its additions is another one.

A sparse kernel adds the same products as a dense one, in another order. Of any order the error is
at most ``γ · Σ |w x|`` with the same ``γ`` and the same products, so an output for which one order
rounds badly is one for which all do: a deep model whose last layers cancel is off by 1e-4 in every
float32 implementation. How badly is measured, not assumed: with the output in float64 as ``exact``,
``worst`` is the larger of the errors of two other implementations, PyTorch and ONNX Runtime on the
plain file. The largest error over the elements of an output differs little between orders; the
factor is for what it does differ. What a kernel computes wrongly is of another size, and nothing
passes that would not pass for the plain file.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from st3fx.errors import ExportError
from st3fx.export import parity
from st3fx.export.call import Call, Flat
from st3fx.export.parity import Array, Bound, difference
from st3fx.modules.copying import copied

FACTOR = 4.0
"""How much larger the largest error of one order may be than that of others."""


class Rounding:
    """Bounds on the outputs of a file with sparse kernels, from how others round.

    Attributes:
        widest: The largest relative difference that was allowed.
    """

    def __init__(self, flat: Flat, call: Call, plain: Path, tolerance: float, limit: float) -> None:
        """Compute nothing yet.

        Args:
            flat: The model.
            call: The example.
            plain: The file with the same graph and ONNX's own operators.
            tolerance: Relative difference that passes in any case.
            limit: That never passes: what the plain file may differ by.
        """
        self.widest = tolerance
        self._flat, self._call, self._plain = flat, call, plain
        self._tolerance, self._limit = tolerance, limit

    def __call__(self, tensors: Sequence[Tensor]) -> list[Bound]:
        """The bound on each output for these inputs."""
        single = parity.run_torch(self._flat, tensors)
        exact = [array.astype("float64") for array in self._exact(tensors) or single]
        others = [single]
        with contextlib.suppress(ExportError):  # the plain file may be for the example's size
            others.append(parity.run_onnx(self._session, tensors))
        bounds = []
        for index, value in enumerate(exact):
            # Numbers that are no floats are right or wrong.
            told = others if single[index].dtype.kind == "f" else []
            worst = max((_error(value, answers[index]) for answers in told), default=0.0)
            allowed = min(self._limit, max(self._tolerance, FACTOR * worst))
            bounds.append(Bound(value, allowed))
        self.widest = max(self.widest, *(bound.allowed for bound in bounds))
        return bounds

    def _exact(self, tensors: Sequence[Tensor]) -> list[Array]:
        """The outputs in float64 as far as the forward leaves it; nothing where it refuses that."""
        wide = [t.double() if t.dtype == torch.float32 else t for t in tensors]
        try:
            return parity.run_torch(self._double, wide)
        except Exception:  # noqa: BLE001 (whatever a forward says to other types)
            return []

    @functools.cached_property
    def _double(self) -> Flat:
        return Flat(copied(self._flat.model).double(), self._call)

    @functools.cached_property
    def _session(self) -> Any:
        return parity.open_plain(self._plain)


def _error(exact: Array, given: Array) -> float:
    """Relative; 0 where it says nothing."""
    relative = difference(exact, given.astype("float64"))[1]
    return relative if relative < float("inf") else 0.0
