"""The settings of a conversion, which signature, options, recipes and files all have."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import st3fx
from st3fx.cli.app import main
from st3fx.cli.train import train
from st3fx.files.bundle import read_bundle
from st3fx.files.manifest import Manifest, Recipe
from st3fx.plan.settings import NAMES, ConversionSettings
from st3fx.plan.sites import SparsityPlan
from st3fx.report.facts import convert_command
from st3fx.training.settings import Settings, from_dict, read_toml, to_toml

OTHER: dict[str, Any] = {
    "include": ("*.weight",), "exclude": ("fc.*", "*.bias"), "skip_depthwise": True,
    "skip_first": True, "skip_last": True, "include_tied": True, "keep_zeros": False,
    "recompute_weights": True,
}  # fmt: skip
"""Another value of each than the default."""

FLAGS = [
    "--include", "*.weight", "--exclude", "fc.*", "--exclude", "*.bias", "--skip-depthwise",
    "--skip-first", "--skip-last", "--include-tied", "--no-keep-zeros",
    "--recompute-weights",
]  # fmt: skip


def test_the_public_signature_has_each_with_its_default() -> None:
    parameters = inspect.signature(st3fx.convert).parameters
    for field in dataclasses.fields(ConversionSettings):
        default = None if field.default == () else field.default
        assert parameters[field.name].default is default
        assert f"{field.name}: " in str(st3fx.convert.__doc__)
    assert tuple(OTHER) == NAMES


@pytest.mark.parametrize("kind", [Recipe, Settings])
def test_recipes_and_trainings_have_them(kind: Any) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    assert {name: defaults[name] for name in NAMES} == ConversionSettings().of_conversion()


def test_a_manifest_keeps_them(tmp_path: Path) -> None:
    recipe = Recipe("m.py", {"name": "st3"}, **OTHER)
    text = Manifest(recipe, SparsityPlan((), (), (), ()), {}).to_json(tmp_path)
    assert Manifest.from_json(text, tmp_path).recipe == recipe
    assert recipe.of_conversion() == OTHER


def test_a_file_of_settings_keeps_them(tmp_path: Path) -> None:
    settings = Settings(spec="m.py", **OTHER)
    (tmp_path / "settings.toml").write_text(to_toml(settings))
    assert from_dict(read_toml(tmp_path / "settings.toml"), "settings") == settings


def test_options_give_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = train.make_context("train", [*FLAGS]).params
    assert {name: said[name] for name in NAMES} == OTHER
    monkeypatch.chdir(tmp_path)
    text = "from torch import nn\ndef build_model():\n    return nn.Sequential({})\n"
    layers = "nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)"
    Path("m.py").write_text(text.format(layers))
    flags = [*FLAGS[:2], *FLAGS[6:]]
    done = CliRunner().invoke(main, ["convert", "m.py", "--input", "2x4", *flags])
    assert done.exit_code == 0, done.output
    recipe = read_bundle("m.st3fx").manifest.recipe
    assert recipe.of_conversion() == {**OTHER, "exclude": ()}
    assert set(flags) <= set(convert_command(recipe, Path("m.st3fx")).replace("'", "").split())


def test_they_need_no_torch() -> None:
    code = "import sys, st3fx.plan.settings, st3fx.cli.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
