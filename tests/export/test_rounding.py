"""What a file with sparse kernels may differ by: what PyTorch and the plain file round by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import ExportError
from st3fx.export import parity
from st3fx.export.call import Call, Flat
from st3fx.export.export_result import ExportResult
from st3fx.export.rounding import FACTOR, Rounding
from st3fx.plan.example import Example
from st3fx.runtime.layout import SparseWeights, compress
from tests.passes.onnx.graphs import SPARSE_WINS


class Cancelling(nn.Module):
    """Two layers that nearly cancel: the result is as small as ``gap``, its rounding is not."""

    def __init__(self, gap: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(256, 8, bias=False), nn.Linear(256, 8, bias=False)
        with torch.no_grad():
            self.left.weight.mul_(torch.rand(8, 256) < 0.3)
            self.right.weight.copy_(self.left.weight * (1 + gap * torch.randn(8, 256)))

    def forward(self, x: Tensor) -> Any:
        return self.left(x) - self.right(x.flip(0).flip(0))


X = torch.randn(2, 256, generator=torch.Generator().manual_seed(1))


def export(path: Path, gap: float, **options: Any) -> ExportResult:
    return st3fx.export_onnx(Cancelling(gap), X, path, sparse_kernels=True, **options)


@pytest.fixture(autouse=True)
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st3fx.export.sparse.load_calibration", lambda: SPARSE_WINS)


@pytest.mark.slow
def test_what_rounding_explains_passes(tmp_path: Path) -> None:
    result = export(tmp_path / "m.onnx", gap=8e-3)
    assert result.sparse is not None
    assert result.sparse.kernels.sparse == 2
    assert 1e-5 < result.sparse.tolerance <= result.tolerance == 1e-4
    assert max(row.relative for row in result.sparse.parity) <= result.sparse.tolerance
    # What was asked for is what was asked for.
    with pytest.raises(ExportError, match="where 1e-05 relative is allowed"):
        export(tmp_path / "n.onnx", gap=8e-3, tolerance=1e-5)


@pytest.mark.slow
def test_what_it_does_not_explain_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the layers is off by a few units in the last place, which the model makes larger."""
    seen: list[SparseWeights] = []

    def wrong(weight: Any) -> SparseWeights:
        seen.append(compress(weight))
        seen[0].values[:] *= np.float32(1 + 3e-6 if len(seen) == 1 else 1)
        return seen[-1]

    monkeypatch.setattr("st3fx.passes.onnx.sparse_kernels.emit.compress", wrong)
    with pytest.raises(ExportError, match="ONNX Runtime and PyTorch differ in output"):
        export(tmp_path / "m.onnx", gap=8e-3)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_well_behaved_model_has_the_narrow_tolerance(tmp_path: Path) -> None:
    result = export(tmp_path / "m.onnx", gap=1.0)
    assert result.sparse is not None
    assert result.sparse.tolerance == 1e-5


class Fake:
    """A session that is off from the exact output, by so much of its largest value."""

    def __init__(self, error: float, exact: Any = None) -> None:
        self._error, self._exact = error, EXACT if exact is None else exact

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x")]

    def run(self, *given: Any) -> list[Any]:
        return [self._exact + np.float32(self._error) * np.abs(self._exact).max()]


EXACT = np.linspace(-1, 1, 16, dtype=np.float32)


class Constant(nn.Module):
    """What it computes is exact."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(EXACT)


@pytest.mark.parametrize(
    ("error", "allowed"),
    [
        (0.0, 1e-5),  # nothing to explain
        (1e-6, 1e-5),
        (1e-5, FACTOR * 1e-5),
        (2e-4, 1e-4),  # never more than the plain file may differ by
        (np.nan, 1e-5),  # what says nothing allows nothing
    ],
)
def test_the_bound_follows_the_rounding_of_the_plain_file(
    monkeypatch: pytest.MonkeyPatch, error: float, allowed: float
) -> None:
    monkeypatch.setattr(parity, "open_plain", lambda path: Fake(error))
    call = Call.of(Constant(), Example.of(X))
    rounding = Rounding(Flat(Constant(), call), call, Path("plain.onnx"), 1e-5, 1e-4)
    (bound,) = rounding([X])
    assert bound.allowed == pytest.approx(allowed, rel=0.05)
    assert rounding.widest == bound.allowed
    assert np.array_equal(bound.exact, EXACT)


def test_the_bound_follows_the_rounding_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain file for one size of images alone tells nothing of others."""

    def refused(path: Path) -> Any:
        raise ExportError("made for another size")

    monkeypatch.setattr(parity, "open_plain", refused)
    model = Cancelling(1e-2)
    call = Call.of(model, Example.of(X))
    (bound,) = Rounding(Flat(model, call), call, Path("plain.onnx"), 1e-7, 1e-2)([X])
    exact = Cancelling(1e-2).double()(X.double())
    error = float(((model(X).double() - exact).abs().max() / exact.abs().max()).detach())
    assert bound.allowed == pytest.approx(FACTOR * error, rel=1e-3)
    np.testing.assert_allclose(bound.exact, exact.detach().numpy(), rtol=1e-9)


def test_integers_are_right_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Place(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(EXACT).argmax() + 1000

    monkeypatch.setattr(parity, "open_plain", lambda path: Fake(1e-3, np.array(1015)))
    call = Call.of(Place(), Example.of(X))
    rounding = Rounding(Flat(Place(), call), call, Path("plain.onnx"), 1e-5, 1e-4)
    assert rounding([X])[0].allowed == rounding.widest == 1e-5
