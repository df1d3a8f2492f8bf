from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import st3fx
from st3fx.cli import main
from st3fx.commands.budgets import (
    Times,
    fitted,
    for_share,
    for_time,
    for_time_together,
    times_of,
)
from st3fx.errors import BenchError, MethodError, StateError
from st3fx.training.sensitivity import read_sensitivity
from tests.report.conftest import run as run  # noqa: PLC0414 (a fixture)
from tests.training.test_budgets import CHEAP, DEAR, result


class Made:
    """A millisecond for each nonzero of the first layer, two for one of the second."""

    names = ("cheap.weight", "dear.weight")
    dense = 0.3

    def at(self, nonzeros: Mapping[str, int]) -> float:
        found = {"cheap.weight": 10, "dear.weight": 10} | dict(nonzeros)
        return 1e-3 * (found["cheap.weight"] + 2 * found["dear.weight"])


def times(dense: float = 305, sparse: float = 35) -> Times:
    graph: Any = Made()
    return fitted(graph, dense, sparse, "defaults", "a processor")


def test_two_runs_say_how_fast_the_machine_is_and_what_else_there_is() -> None:
    half = {"cheap.weight": 50, "dear.weight": 50}
    assert times().milliseconds(half) == pytest.approx(155)
    assert times().factor == pytest.approx(1)
    assert times().rest == pytest.approx(5)
    slow = times(640, 100)  # twice as slow, and 40 ms of something else
    assert slow.milliseconds(half) == pytest.approx(340)
    for sparse in (310, 305, 1):  # nothing is won, or more than all
        assert times(305, sparse).milliseconds(half) == pytest.approx(305 / 2)


def test_targets_for_a_time() -> None:
    found = result(CHEAP, DEAR)
    met = for_time(found, times(), 205)
    assert met.unit == "ms"
    assert met.ms is not None
    assert met.ms <= 205
    assert met.ms == pytest.approx(205, abs=2)
    assert met.budgets is not None
    assert met.budgets.targets["cheap.weight"] > met.budgets.targets["dear.weight"]
    assert met.sparsity == pytest.approx(met.budgets.sparsity)
    assert for_time(found, times(), 400).sparsity == 0
    with pytest.raises(MethodError, match=r"10 ms cannot be met: 11 ms are expected"):
        for_time(found, times(), 10)
    assert for_share(found, 0.5, "weights").sparsity == pytest.approx(0.5)


def net(method: Any = None) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential()
    plain.add_module("cheap", nn.Linear(10, 10, bias=False))
    plain.add_module("dear", nn.Linear(10, 10, bias=False))
    return st3fx.convert(plain, torch.randn(2, 10), method or st3fx.GMP(0.5), total_steps=4)[0]


def test_one_threshold_for_a_time() -> None:
    model = net()
    met = for_time_together(model, times(), 155)
    assert met.budgets is None
    assert met.ms is not None
    assert met.ms <= 155
    sparsifier = st3fx.Sparsifier(model)
    sparsifier.set_sparsity(met.sparsity)
    nonzeros = {k: int(w.count_nonzero()) for k, w in sparsifier.effective_weights().items()}
    assert times().milliseconds(nonzeros) == met.ms
    sparsifier.set_sparsity(met.sparsity - 0.01)
    nonzeros = {k: int(w.count_nonzero()) for k, w in sparsifier.effective_weights().items()}
    assert times().milliseconds(nonzeros) > 155
    assert for_time_together(model, times(), 305).sparsity == 0
    with pytest.raises(MethodError, match="cannot be met"):
        for_time_together(model, times(), 4)
    with pytest.raises(StateError, match="str learns its thresholds"):
        for_time_together(net(st3fx.STR()), times(), 155)


def test_targets_from_a_run_are_what_it_is_trained_with(run: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))
    target = tmp_path / "budgets.toml"

    def call(*words: object) -> Any:
        return CliRunner().invoke(main, ["sensitivity", str(own), *map(str, words)])

    first = call("--sparsity", "0.5,0.9", "--images", 32, "--budget", 0.6, "-o", target)
    assert first.exit_code == 0, first.stderr
    values = tomllib.loads(target.read_text())
    assert values["sparsity"] == pytest.approx(0.6, abs=1e-4)
    assert [text.partition("=")[0] for text in values["sparsity_of"]] == [
        "stem.weight", "head.weight",
    ]  # fmt: skip
    again = call("--reuse", "--budget-macs", 0.6, "-o", target, "--json")
    assert again.exit_code == 0, again.stderr
    data = json.loads(again.stdout)
    assert data["budget"]["budgets"]["macs_saved"] == pytest.approx(0.6, abs=1e-4)
    assert data["layers"] == read_sensitivity(own / "sensitivity.json").to_dict()["layers"]
    values = tomllib.loads(target.read_text())
    spec = tomllib.loads((own / "settings.toml").read_text())["model"]["spec"]
    made = CliRunner().invoke(main, [
        "convert", spec, "-i", "1x1x28x28", "--sparsity-of", str(target), "--dry-run", "--json",
    ])  # fmt: skip
    assert made.exit_code == 0, made.stderr
    plan = json.loads(made.stdout)["plan"]
    assert plan["target"] == values["sparsity"]
    assert [f"{name}={share:g}" for name, share in plan["targets"]] == values["sparsity_of"]
    for words, message in (
        (["--reuse", "--budget", 0.95], "up to which it was measured"),
        (["--budget", 0.5, "--budget-ms", 3], "give one budget"),
        (["--global"], "--global is for --budget-ms"),
        (["--budget-ms", 0], "give milliseconds"),
        (["-o", target], "--output is for a budget"),
        (["--budget", 0.5, "-o", tmp_path / "no" / "b.toml"], "there is no folder"),
        (["--budget", 0.5, "-o", own / "settings.toml"], "exists: choose another file"),
    ):
        wrong = call(*words)
        assert wrong.exit_code == 2, (words, wrong.output)
        assert message in wrong.stderr
        assert wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_time_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ST3FX_COSTS", str(tmp_path / "none.json"))
    words = ["sensitivity", "st3fx:resnet20", "-i", "1x3x32x32", "--global", "--budget-ms"]
    target = ["-o", str(tmp_path / "b.toml"), "--json"]
    easy = CliRunner().invoke(main, [*words, "1e6", *target])
    assert easy.exit_code == 0, easy.stderr
    found = json.loads(easy.stdout)["budget"]
    assert (found["sparsity"], found["constants"]) == (0.0, "defaults")
    assert found["ms"] == pytest.approx(found["dense_ms"])
    assert tomllib.loads((tmp_path / "b.toml").read_text()) == {"sparsity": 0.0}
    hard = CliRunner().invoke(main, [*words, "1e-6", *target])
    assert hard.exit_code == 2
    assert "cannot be met" in hard.stderr
    half = CliRunner().invoke(main, [*words, str(0.9 * found["dense_ms"]), *target])
    assert half.exit_code == 0, half.stderr
    met = json.loads(half.stdout)["budget"]
    assert 0 <= met["sparsity"] < 1  # the machine may be faster by now
    assert met["ms"] <= 0.9 * found["dense_ms"]


@pytest.mark.slow
def test_layers_have_the_names_of_the_sites() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3),
        nn.Flatten(), nn.Linear(32 * 14 * 14, 10),
    )  # fmt: skip
    model, sparsifier = st3fx.convert(plain, torch.randn(2, 3, 16, 16), st3fx.GMP(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = times_of(model, torch.randn(2, 3, 16, 16), lambda stage: None)
    assert set(made.graph.names) == {site.name for site in sparsifier.plan.sites}
    whole = {site.name: site.numel for site in sparsifier.plan.sites}
    few = {name: count // 50 for name, count in whole.items()}
    assert made.milliseconds(whole) == pytest.approx(made.dense)
    assert made.graph.at(few) < 0.5 * made.graph.at(whole)
    assert made.milliseconds(few) < made.milliseconds(whole)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_without_kernels_has_no_time() -> None:
    lone = nn.Sequential(nn.Conv1d(2, 2, 3))
    model, _ = st3fx.convert(lone, torch.randn(2, 2, 8), st3fx.GMP(0.5))
    with pytest.raises(BenchError, match="no layer of the model has a sparse kernel"):
        times_of(model, torch.randn(2, 2, 8), lambda stage: None)
