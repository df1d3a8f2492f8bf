"""The constants of a machine: measured, kept in a file, read again, and the fit behind them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from st3fx.commands.calibrate import calibrate
from st3fx.errors import BenchError
from st3fx.files.reading import sealed
from st3fx.runtime import calibrate as measuring
from st3fx.runtime import calibration
from st3fx.runtime.calibrate import Probe, fit, nonnegative, probes
from st3fx.runtime.costs import ConvWork, Costs, LinearWork, seconds


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "deep" / "costs.json"
    monkeypatch.setenv("ST3FX_COSTS", str(path))
    return path


def test_defaults_where_nothing_was_measured() -> None:
    assert calibration.load_calibration() == calibration.Calibration(Costs(), "defaults")


def test_a_file_comes_back(own_file: Path) -> None:
    costs = Costs(call=1.5, multiply=2.5e-10)
    assert calibration.save_calibration(costs) == own_file
    assert calibration.load_calibration() == calibration.Calibration(costs, str(own_file))


def test_a_file_of_another_machine_does_not_count(own_file: Path) -> None:
    calibration.save_calibration(Costs(call=1.5))
    content = json.loads(own_file.read_text())
    content["machine"]["cpu"] = "another"
    own_file.write_text(json.dumps(content))
    with pytest.raises(BenchError, match="was damaged or edited after it was written"):
        calibration.load_calibration()
    own_file.write_text(json.dumps(sealed({"machine": {}, "costs": {}})))
    assert calibration.load_calibration().source == "defaults"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"costs": {"speed": 1}}', '{"costs": {"call": -1}}',
     '{"costs": {"call": "1"}}', '{"costs": {"call": NaN}}'],
)  # fmt: skip
def test_a_broken_file_is_named(own_file: Path, text: str) -> None:
    own_file.parent.mkdir()
    own_file.write_text(text)
    with contextlib.suppress(ValueError, TypeError):
        text = json.dumps(sealed({"machine": {}, **json.loads(text)}))
    own_file.write_text(text)
    with pytest.raises(BenchError, match=r"costs\.json.*: it has the cost model"):
        calibration.load_calibration()


def test_a_file_that_cannot_be_written(own_file: Path) -> None:
    own_file.parent.write_text("")  # a file where the folder should be
    with pytest.raises(BenchError, match="cannot write"):
        calibration.save_calibration(Costs())


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ST3FX_COSTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert calibration.calibration_path() == Path("/cache/st3fx/costs.json")


def _works() -> list[Probe]:
    """Layers of all kinds, without kernels."""
    found = []
    generator = np.random.default_rng(0)
    for _ in range(40):
        channels, rows = (int(n) for n in generator.integers(8, 512, 2))
        positions, kernel = int(generator.integers(7, 60)) ** 2, int(generator.choice([1, 3]))
        columns, stride = channels * kernel**2, int(generator.choice([1, 2]))
        count = int(rows * columns * generator.random())
        conv = ConvWork(
            rows, columns, count, kernel**2, stride, 1, positions * stride**2, positions
        )
        linear = LinearWork(rows, channels, rows * channels // 3, int(generator.choice([1, 64])))
        for work, name in ((conv, "SparseConv"), (linear, "SparseLinear")):
            blocked = bool(generator.integers(2))
            found.append(Probe(name, int, work, is_sparse=True, blocked=blocked))
        found += [Probe("Conv", int, conv), Probe("Gemm", int, linear)]
        found.append(Probe("Layout", int, nbytes=int(generator.integers(10**4, 10**6))))
    return sorted(found, key=lambda probe: probe.kind != "SparseConv")


def test_a_fit_finds_the_constants_that_made_the_times() -> None:
    generator = np.random.default_rng(1)
    wanted = Costs(*(x * generator.uniform(0.5, 2) for x in dataclasses.astuple(Costs())))
    measured = [(probe, seconds(wanted, dict(measuring._features(probe)))) for probe in _works()]
    found = fit(measured)
    assert dataclasses.astuple(found.costs) == pytest.approx(dataclasses.astuple(wanted), rel=1e-6)
    assert found.error < 1e-9
    assert found.layers == len(measured)


def test_no_constant_is_negative() -> None:
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert nonnegative(matrix, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert nonnegative(matrix, np.array([-1.0, -2.0, -3.0])).tolist() == [0.0, 0.0]
    assert nonnegative(matrix, np.array([3.0, 5.0, 7.0])) == pytest.approx([1.0, 2.0])


@pytest.mark.slow
def test_a_calibration_is_kept(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few layers in a single round: what it takes to see that it runs."""
    kinds: dict[str, Probe] = {}
    for probe in probes():
        kinds.setdefault(f"{probe.kind} {probe.blocked}", probe)
    monkeypatch.setattr(measuring, "probes", kinds.values)
    monkeypatch.setattr(measuring, "ROUNDS", 1)
    stages: list[str] = []
    result = calibrate(progress=stages.append)
    assert stages == [f"measuring {len(kinds)} layers, round 1 of 1"]
    assert result.path == own_file
    assert result.layers == len(kinds) >= 5
    assert calibration.load_calibration().costs == result.costs
    data = json.loads(json.dumps(result.to_dict()))
    assert data["machine"] == json.loads(own_file.read_text())["machine"]
    assert data["costs"]["dense_pointwise"] > 0
