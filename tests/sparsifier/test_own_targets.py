"""Targets of single sites: exact, and together what one threshold would prune."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import st3fx
from st3fx.cli import main
from st3fx.commands.convert import load_bundle
from st3fx.errors import MethodError, PlanError
from st3fx.methods import from_dict, to_dict
from st3fx.methods.targets import own_targets, parse_targets
from st3fx.modules.marks import change_conversion
from st3fx.plan.explain import explain
from tests.models import TINY, write


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.Linear(20, 11))


def made(method: Any, **settings: Any) -> tuple[nn.Module, st3fx.Sparsifier]:
    return st3fx.convert(net(), torch.randn(2, 40), method, total_steps=10, **settings)


def zeros(sparsifier: st3fx.Sparsifier) -> list[int]:
    return [int((w == 0).sum()) for w in sparsifier.effective_weights().values()]


SIZES = [1200, 600, 220]
METHODS = (st3fx.GMP, st3fx.ST3, st3fx.Feather)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("sparsity", [0.5, 0.737, 0.9])
def test_each_site_has_its_own_and_all_have_the_whole(kind: Any, sparsity: float) -> None:
    _, sparsifier = made(kind(sparsity, sparsity_of={"2.*": 0.85, "3.weight": 0.8}))
    sparsifier.set_sparsity(sparsity)
    found = zeros(sparsifier)
    # As the quantile of so many weights has it: those up to (n − 1)·s.
    assert found[1:] == [int(599 * 0.85) + 1, int(219 * 0.8) + 1]
    assert sum(found) == int(2019 * sparsity) + 1
    _, plain = made(kind(sparsity))
    plain.set_sparsity(sparsity)
    assert sum(zeros(plain)) == sum(found)


def test_the_sites_without_share_one_threshold() -> None:
    _, sparsifier = made(st3fx.GMP(0.8, sparsity_of={"0.*": 0.75}))
    sparsifier.set_sparsity(0.8)
    thresholds = list(sparsifier.thresholds.values())
    assert thresholds[1] == thresholds[2] != thresholds[0]
    assert sparsifier.level is not None
    assert float(sparsifier.level) == thresholds[1]


def test_on_the_way_all_targets_are_as_far() -> None:
    method = st3fx.GMP(0.8, sparsity_of={"0.weight": 0.9, "3.weight": 0.0})
    model, sparsifier = made(method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = []
    for _ in range(10):
        optimizer.step()
        sparsifier.step()
        wanted, found = sparsifier.scheduled, zeros(sparsifier)
        assert wanted is not None
        seen.append(wanted)
        if wanted:
            assert sum(found) == int(2019 * wanted) + 1
            assert found[0] == int(1199 * (0.9 * wanted / 0.8)) + 1
        assert found[2] == 0
    assert seen[-1] == 0.8
    assert len(set(seen)) > 3
    sparsifier.set_sparsity(0.95)  # above the target each keeps a quarter of what it had left
    found = zeros(sparsifier)
    assert sum(found) == int(2019 * 0.95) + 1
    assert found[0] == int(1199 * (1 - 0.1 * 0.25)) + 1
    assert found[2] == int(219 * 0.75) + 1


def test_the_last_glob_counts_and_every_site_may_have_one() -> None:
    method = st3fx.GMP(0.5, sparsity_of=[("*", 0.5), ("2.weight", 0.5)])
    _, sparsifier = made(method)
    sparsifier.set_sparsity(0.5)
    assert zeros(sparsifier) == [600, 300, 110]
    assert sparsifier.level is None
    sites = sparsifier.plan.sites
    later = st3fx.GMP(0.5, sparsity_of={"*": 0.1, "2.*": 0.4, "2.w*": 0.3})
    assert own_targets(later, sites) == {0: 0.1, 1: 0.3, 2: 0.1}


def test_groups_and_multiplications() -> None:
    method = st3fx.GMP(0.5, granularity=st3fx.Block(4), sparsity_of={"0.weight": 0.75})
    _, sparsifier = made(method)
    sparsifier.set_sparsity(0.5)
    found = zeros(sparsifier)
    assert found[0] == 900
    assert abs(sum(found) - 1010) <= 4
    _, sparsifier = made(st3fx.GMP(0.5, budget="macs", sparsity_of={"0.weight": 0.75}))
    sparsifier.set_sparsity(0.5)
    assert abs(sum(zeros(sparsifier)) - 1010) <= 1
    assert zeros(sparsifier)[0] in (899, 900)


def test_copies_folds_and_state_dicts_keep_them() -> None:
    method = st3fx.GMP(0.8, sparsity_of={"0.weight": 0.9})
    model, sparsifier = made(method)
    sparsifier.set_sparsity(0.8)
    found = zeros(sparsifier)
    folded = st3fx.fold(model)
    assert [int((p == 0).sum()) for p in folded.parameters() if p.dim() > 1] == found
    again, other = made(method)
    again.load_state_dict(model.state_dict())
    assert zeros(other) == found
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter))
    average.eval()
    average(torch.randn(2, 40))
    moved = zeros(st3fx.Sparsifier(average))
    assert moved[0] == found[0]
    assert sum(moved) == sum(found)
    assert moved != found


def test_zeros_that_a_model_comes_with_and_own_targets() -> None:
    plain = net()
    with torch.no_grad():
        plain.get_parameter("0.weight")[:15] = 0
    model, sparsifier = st3fx.convert(
        plain, torch.randn(2, 40), st3fx.GMP(0.8, sparsity_of={"3.weight": 0.5}), total_steps=4
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(4):
        optimizer.step()
        sparsifier.step()
    assert sum(zeros(sparsifier)) == int(2019 * 0.8) + 1
    assert zeros(sparsifier)[2] == int(219 * 0.5) + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"": 0.5}, "give a glob"), ({"a": 1.0}, "give a glob"), ({"a": True}, "give a glob"),
        ({"a": "0.5"}, "give a glob"), ([("a",)], "give a glob"), (3, "give a dict"),
        ("a=0.5", "give a dict"),
    ],
)  # fmt: skip
def test_wrong_targets_are_refused(given: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        st3fx.ST3(0.9, sparsity_of=given)


def test_what_cannot_be_is_refused_with_what_can() -> None:
    with pytest.raises(PlanError, match=r"sparsity_of 'conv\*' matches no site"):
        made(st3fx.GMP(0.5, sparsity_of={"conv*": 0.5}))
    with pytest.raises(PlanError, match=r"would need 207\.1% .* 0\.0595 to below 0\.4653 is"):
        made(st3fx.GMP(0.9, sparsity_of={"0.weight": 0.1}))
    with pytest.raises(PlanError, match=r"amount to a sparsity of 0\.5000, not 0\.9"):
        made(st3fx.GMP(0.9, sparsity_of={"*": 0.5}))
    with pytest.raises(MethodError, match="same sparsity everywhere"):
        st3fx.GMP(granularity=st3fx.NM(2, 4), sparsity_of={"*": 0.5})
    with pytest.raises(MethodError, match="within one budget"):
        st3fx.ProbMask(0.5, sparsity_of={"*": 0.5})
    with pytest.raises(TypeError, match="sparsity_of"):
        st3fx.STR(sparsity_of={"*": 0.5})  # type: ignore[call-arg]


def test_texts_and_json_values() -> None:
    assert parse_targets(["layer4.*=0.95", "a=b=0.5", "layer4.*=0.9"]) == (
        ("a=b", 0.5), ("layer4.*", 0.9),
    )  # fmt: skip
    for text in ("layer4", "layer4=", "=0.5", "layer4=x", "layer4=nan", "layer4=1"):
        with pytest.raises(MethodError, match=r"sparsity_of"):
            parse_targets([text])
    method = st3fx.ST3(0.9, sparsity_of={"b*": 0.5, "a*": 0.1})
    assert from_dict(json.loads(json.dumps(to_dict(method)))) == method
    assert to_dict(method)["sparsity_of"] == {"b*": 0.5, "a*": 0.1}


def test_bundles_and_the_command_line(tmp_path: Path) -> None:
    def run(*words: object) -> Any:
        return CliRunner().invoke(main, list(map(str, words)))

    model = write(tmp_path, "tiny.py", TINY)
    bundle = tmp_path / "tiny.st3fx"
    plain = run("convert", model, "--dry-run", "--json")
    names = [site["name"] for site in json.loads(plain.stdout)["plan"]["sites"]]
    own = ["--sparsity", "0.5", "--sparsity-of", f"{names[0]}=0.55"]
    result = run("convert", model, *own, "-o", bundle)
    assert result.exit_code == 0, result.stderr
    loaded: Any = load_bundle(bundle)
    assert loaded.st3fx_plan.targets == ((names[0], 0.55),)
    sparsifier = st3fx.Sparsifier(loaded)
    sparsifier.set_sparsity(0.5)
    weight = sparsifier.effective_weights()[names[0]]
    assert int((weight == 0).sum()) == int((weight.numel() - 1) * 0.55) + 1
    assert ("target", "0.55, of its own") in explain(loaded.st3fx_plan, names[0]).facts
    said = run("convert", model, *own, "--explain", names[0])
    assert "0.55, of its own" in said.stdout
    for words, message in (
        (["--method", "str", "--sparsity-of", "*=0.5"], "str learns its thresholds, and has no"),
        (["--sparsity-of", "nowhere.*=0.5"], "matches no site"),
        (["--sparsity-of", "x=2"], "give a glob"),
        (["--sparsity-of", tmp_path / "no.toml"], "no settings file"),
    ):
        wrong = run("convert", model, *words, "--dry-run")
        assert wrong.exit_code == 2, wrong.output
        assert message in wrong.stderr
        assert wrong.stderr.count("\n") == 1
    budgets = tmp_path / "budgets.toml"
    budgets.write_text(f'sparsity = 0.5\nsparsity_of = ["{names[0]}=0.55"]\n')
    again = run("convert", model, "--sparsity-of", budgets, "--dry-run", "--json")
    method = json.loads(again.stdout)["method"]
    assert (method["sparsity"], method["sparsity_of"]) == (0.5, {names[0]: 0.55})
    budgets.write_text("epochs = 3\n")
    wrong = run("convert", model, "--sparsity-of", budgets, "--dry-run")
    assert "give GLOB=S, or a file" in wrong.stderr


def test_a_bundle_that_trains_with_other_targets_is_evaluated_with_these() -> None:
    model, sparsifier = made(st3fx.GMP(0.8))
    change_conversion(model, method=st3fx.GMP(0.8, sparsity_of={"0.weight": 0.9}))
    sparsifier.set_sparsity(0.8)
    assert zeros(sparsifier)[0] == int(1199 * 0.9) + 1
    model.eval()
    model(torch.randn(2, 40))
    assert zeros(sparsifier)[0] == int(1199 * 0.9) + 1
