from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from st3fx.cli import main
from st3fx.cli.train import train
from st3fx.files.manifest import Recipe
from st3fx.methods import ST3, STR, to_dict
from st3fx.report.facts import convert_command, train_command
from st3fx.sparsity.granularity import Block
from st3fx.training.recipes import RECIPES, resolve
from st3fx.training.settings import Settings

CHANGED: dict[str, Any] = {
    "spec": "my net.py", "epochs": 4, "augment": False, "model_ema": True, "sched": "multistep",
    "milestones": (80.0, 120.5), "exclude": ("fc*", "a b"), "output_dir": "out",
}  # fmt: skip


def test_only_what_differs_from_the_defaults_is_said() -> None:
    assert train_command(Settings(spec="st3fx:resnet20")) == "st3fx train st3fx:resnet20"
    assert train_command(Settings(**CHANGED)) == (
        "st3fx train 'my net.py' --exclude 'fc*' --exclude 'a b' --no-augment --epochs 4 "
        "--sched multistep --milestones 80,120.5 --model-ema --output-dir out"
    )


@pytest.mark.parametrize("values", [CHANGED, *({"spec": "m.py", "recipe": r} for r in RECIPES)])
def test_the_command_gives_the_same_settings(values: dict[str, Any]) -> None:
    settings = resolve(values)
    words = shlex.split(train_command(settings))[2:]
    context = train.make_context("train", words)
    names = {field.name for field in dataclasses.fields(Settings)}
    said = {k: v for k, v in context.params.items() if k in names and v not in (None, ())}
    assert resolve(said) == settings


def test_a_bundle_is_converted_the_same_way_again(tmp_path: Path) -> None:
    recipe = Recipe(
        "st3fx:lenet5", to_dict(ST3(sparsity=0.8, normalize="sigma")), inputs=("2x1x28x28",),
        total_steps=7, exclude=("fc*",), skip_first=True, seed=3,
    )  # fmt: skip
    command = convert_command(recipe, tmp_path / "out.st3fx")
    assert command == (
        "st3fx convert st3fx:lenet5 --input 2x1x28x28 --method st3-sigma --sparsity 0.8 "
        f"--total-steps 7 --exclude 'fc*' --skip-first --seed 3 -o {tmp_path}/out.st3fx"
    )
    assert CliRunner().invoke(main, [*shlex.split(command)[1:], "--help"]).exit_code == 0
    again = convert_command(dataclasses.replace(recipe, keep_zeros=False), tmp_path / "out.st3fx")
    assert again == command.replace(" --seed", " --no-keep-zeros --seed")
    assert CliRunner().invoke(main, [*shlex.split(again)[1:], "--help"]).exit_code == 0
    learned = convert_command(Recipe("m.py", to_dict(STR())), Path("b"))
    assert learned == "st3fx convert m.py --method str -o b"
    own = ST3(0.7, rescale=False, granularity=Block(8))
    assert convert_command(Recipe("m.py", to_dict(own)), Path("b")) == (
        "st3fx convert m.py --method st3 --sparsity 0.7 --granularity block:8 "
        "--method-option rescale=false -o b"
    )
