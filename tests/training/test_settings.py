from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from st3fx import methods
from st3fx.errors import MethodError, St3fxError, TrainError
from st3fx.methods.base import ScheduledMethod
from st3fx.sparsity.granularity import Block
from st3fx.sparsity.schedule import CubicSchedule
from st3fx.training.folder import RunFolder, find_run
from st3fx.training.method import adjusted, make_method
from st3fx.training.recipes import RECIPES, lasting, resolve, resume
from st3fx.training.settings import FREE, Settings, from_dict, read_run, read_toml, to_toml


def test_settings_survive_toml(tmp_path: Path) -> None:
    odd = Settings(
        spec='a "quoted"\\path\n\x7f\u00e9.py', lr=1e-5, weight_decay=3.0, ramp=(0.0, 1.0),
        include=("a*", "b"), nesterov=True, sparsity=0.5, clip_grad=1.0, milestones=(1, 2.5),
        workers=3, output_dir="x y",
    )  # fmt: skip
    for settings in (Settings(), odd):
        path = tmp_path / "settings.toml"
        path.write_text(to_toml(settings), encoding="utf-8")
        assert from_dict(read_toml(path), "file") == settings
    # Every setting is in the file, in a table, and those without a value as comments.
    text = to_toml(Settings())
    tables = tomllib.loads(text)
    values = {key for table in tables.values() for key in table}
    for field in dataclasses.fields(Settings):
        assert (field.name in values) == (getattr(Settings(), field.name) is not None)
        assert f"{field.name} = " in text
        assert f"# {field.metadata['help']}\n" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs = 0: give 1 or more"),
        ({"epochs": 10**12}, "epochs = 1e\\+12: give 2,147,483,647 or less"),
        (
            {"lr_gamma": 1e200, "sched": "multistep", "milestones": (1.0,)},
            "lr_gamma = 1e\\+200: give",
        ),
        ({"epochs": 1.5}, "epochs = 1.5: give a whole number"),
        ({"epochs": True}, "epochs = True: give a whole number"),
        ({"lr": "fast"}, "lr = 'fast': give a number"),
        ({"lr": -0.1}, "lr = -0.1: give 0 or more"),
        ({"lr": float("nan")}, "lr = nan: give a number"),
        ({"nesterov": 1}, "nesterov = 1: give true or false"),
        ({"momentum": 1.0}, "momentum = 1: give 0 or more and below 1"),
        ({"sparsity": 1.0}, "sparsity = 1: give 0 or more and below 1"),
        ({"opt": "adagrad"}, "opt = 'adagrad': give sgd or adamw or adam"),
        ({"batch_size": None}, "batch_size = None: give a whole number"),
        ({"include": "layer*"}, r"include = 'layer\*': give a list"),
        ({"ramp": [0.5, 0.2]}, "give begin and end, 0 ≤ begin < end ≤ 1"),
        ({"ramp": [0.5]}, "give begin and end"),
        ({"ramp": [0.1, 1.2]}, "give begin and end"),
        ({"milestones": ["x"]}, r"milestones = \('x',\): give a list of numbers"),
        ({"exclude": [1]}, r"exclude = \(1,\): give a list of texts"),
        ({"sched": "multistep"}, "sched = multistep needs milestones"),
        ({"warmup_epochs": 11.0}, "warmup_epochs = 11 is more than epochs = 10"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs opt = sgd with a momentum"),
        ({"nesterov": True, "opt": "adamw"}, "nesterov needs opt = sgd"),
        ({"fsdp": True, "model_ema": True}, "model_ema does not work with fsdp yet"),
        ({"epoch": 3}, "here has an unknown setting 'epoch'; did you mean epochs"),
    ],
)
def test_wrong_values_say_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        from_dict(values, "here")


def test_each_source_goes_over_the_one_before(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('recipe = "st3-cifar"\nepochs = 20\n[optimisation]\nlr = 0.5\n')
    settings = resolve({"lr": 0.25, "spec": "m.py"}, config)
    assert (settings.lr, settings.epochs, settings.batch_size) == (0.25, 20, 128)
    assert (settings.weight_decay, settings.milestones) == (1e-4, (80, 120))
    # A recipe on the command line takes the file's place, not that of what the file sets itself.
    other = resolve({"recipe": "st3-imagenet", "sched": "cosine"}, config)
    assert (other.epochs, other.momentum, other.lr) == (20, 0.875, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rte = 1", "run.toml has an unknown setting 'learning_rte'"),
        ("label_smothing = 0.1", "did you mean label_smoothing"),
        ("lr = -1", "run.toml: lr = -1: give 0 or more"),
        ('recipe = "st3-cifr"', "no recipe 'st3-cifr'; did you mean st3-cifar"),
        ("lr = ", "run.toml is not TOML"),
        ("lr = 1\n[data]\nlr = 2", "run.toml has 'lr' twice"),
        ("lr = inf", "run.toml has inf for a number"),
        ("seed = 99999999999999999999", "run.toml has a whole number of more than 64 bits"),
        ("spec = 2026-11-30", "run.toml has a date, which no value of it is"),
        (f"lr = {'[' * 9999}", "run.toml has more than 32 levels"),
        (f"lr = {'[' * 40}{']' * 40}", "run.toml has more than 32 levels"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(TrainError, match=message):
        resolve({}, path)
    with pytest.raises(TrainError, match=r"no settings file none\.toml"):
        resolve({}, "none.toml")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_settings(name: str) -> None:
    settings = resolve({"recipe": name})
    method = make_method(settings)
    assert isinstance(method, ScheduledMethod)
    assert settings.recipe == name
    assert method.name == RECIPES[name]["method"]
    assert (method.schedule.begin, method.schedule.end) == RECIPES[name]["ramp"]


@pytest.mark.parametrize(("name", "begin", "end"), [("st3-cifar", 5, 80), ("st3-imagenet", 5, 50)])
def test_ramps_of_the_reference(name: str, begin: int, end: int) -> None:
    settings = resolve({"recipe": name})
    method = make_method(settings)
    assert isinstance(method, ScheduledMethod)
    assert method.schedule == CubicSchedule(begin / settings.epochs, end / settings.epochs)
    steps_per_epoch = 391
    total = settings.epochs * steps_per_epoch
    assert method.schedule.sparsity(begin * steps_per_epoch, total, 0.9) == 0
    assert 0 < method.schedule.sparsity(begin * steps_per_epoch + 1, total, 0.9) < 0.01
    assert method.schedule.sparsity(end * steps_per_epoch - 1, total, 0.9) < 0.9
    assert method.schedule.sparsity(end * steps_per_epoch, total, 0.9) == 0.9


def test_a_run_that_goes_on_keeps_its_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(Settings(spec="m.py", epochs=3, output_dir="run"))
    assert resume(folder, {}).epochs == 3
    assert resume(folder, {"epochs": 3, "workers": 4}).workers == 4
    with pytest.raises(TrainError, match=r"started with epochs = 3, which --resume cannot change"):
        resume(folder, {"epochs": 4})
    with pytest.raises(TrainError, match="did you mean"):
        resume(folder, {"epoch": 4})
    assert find_run(folder.path) == (folder, None)
    folder.last.write_bytes(b"")
    folder.best.write_bytes(b"")
    assert find_run(folder.path) == (folder, folder.last)
    assert find_run(folder.best) == (folder, folder.best)
    with pytest.raises(TrainError, match=r"no run in .*: it has no settings.toml"):
        find_run(tmp_path)
    folder.settings.write_text("epochs = 'three'")
    with pytest.raises(TrainError, match=r"settings.toml: epochs = 'three': give a whole number"):
        resume(folder, {})


def test_what_may_change_when_a_run_goes_on() -> None:
    free = {"data_path", "eval_batch_size", "workers", "output_dir", "checkpoint_every", "log_with"}
    assert free | {"recompute_weights"} == FREE


def test_methods_from_settings() -> None:
    method = make_method(
        Settings(
            method="st3-sigma", sparsity=0.8, budget="macs", ramp=(0.1, 0.6),
            method_options=("rescale=False",),
        )
    )  # fmt: skip
    assert method == methods.ST3(
        0.8, "sigma", rescale=False, schedule=CubicSchedule(0.1, 0.6), budget="macs"
    )
    assert make_method(Settings()) == methods.ST3()
    blocks = make_method(Settings(method="dst", granularity="block:8"))
    assert blocks == methods.DST(granularity=Block(8))
    assert make_method(Settings(granularity="nm:1:4")).target == 0.75
    with pytest.raises(TrainError, match="the bundle was converted for block:8: convert the model"):
        adjusted(blocks, Settings(granularity="nm:1:4"))
    assert make_method(Settings(method="dst", method_options=("alpha=1e-5",))) == methods.DST(1e-5)
    for settings, error, message in (
        (Settings(method="str", budget="macs"), TrainError, "str learns its thresholds, and has"),
        (Settings(method="nope"), MethodError, "no method 'nope'"),
        (Settings(method_options=("rescale",)), MethodError, "'rescale': give NAME=VALUE"),
        (Settings(method_options=("power=3",)), MethodError, "its settings are sparsity"),
    ):
        kind: type[St3fxError] = error
        with pytest.raises(kind, match=message):
            make_method(settings)


def test_a_bundle_keeps_its_method() -> None:
    sigma = methods.ST3(0.9, "sigma")
    changed = adjusted(sigma, Settings(sparsity=0.5, ramp=(0.0, 0.5)))
    assert changed == methods.ST3(0.5, "sigma", schedule=CubicSchedule(0.0, 0.5))
    assert adjusted(sigma, Settings(method="st3")) == sigma
    assert adjusted(sigma, Settings(method="st3-sigma")) == sigma
    with pytest.raises(
        TrainError, match="the bundle was converted for st3-sigma: convert the model"
    ):
        adjusted(sigma, Settings(method="gmp"))
    with pytest.raises(TrainError, match="dst learns its thresholds, and has no sparsity"):
        adjusted(methods.DST(), Settings(sparsity=0.5))


def test_a_run_goes_on_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths are those of where it was started, which its own path tells."""
    place = tmp_path / "place"
    for name in ("model.py", "loaders.py", "w.pt", "st3fx/__init__.py"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    monkeypatch.chdir(place)
    values = {"spec": "model.py:build", "data": "loaders.py:make_loaders", "weights": "w.pt"}
    settings = lasting(resolve({**values, "output_dir": "runs/net"}))
    assert settings.spec == "model.py:build"
    RunFolder(Path("runs/net")).create(settings)
    assert resume(RunFolder(Path("runs/net")), {}).spec == "model.py:build"
    monkeypatch.chdir(tmp_path)
    for run in (RunFolder(Path("place/runs/net")), RunFolder(place / "runs" / "net")):
        found = resume(run, {})
        assert found.spec == f"{place}/model.py:build"
        assert (found.data, found.weights) == (f"{place}/loaders.py:make_loaders", f"{place}/w.pt")
        assert resume(run, {"spec": "place/model.py:build"}).spec == "place/model.py:build"
        with pytest.raises(TrainError, match=r"was started with spec = .model\.py:build"):
            resume(run, {"spec": "other.py:build"})
    # Moved together.
    place.rename(tmp_path / "moved")
    moved = resume(RunFolder(Path("moved/runs/net")), {})
    assert moved.spec == f"{tmp_path}/moved/model.py:build"


def test_a_run_that_lies_elsewhere_keeps_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").touch()
    for folder in ("st3fx", "cifar10"):  # names of libraries and data sets, and folders too
        (tmp_path / folder).mkdir()
    for output in (str(tmp_path / "runs"), "../runs"):
        settings = resolve({"spec": "model.py", "data": "cifar10", "output_dir": output})
        assert lasting(settings).spec == f"{tmp_path}/model.py"
        assert lasting(settings).data == "cifar10"
        library = resolve({"spec": "st3fx:resnet20", "output_dir": output})
        assert lasting(library).spec == "st3fx:resnet20"


def test_settings_of_a_run_that_were_edited_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(to_toml(Settings(spec="net.py", epochs=3)), encoding="utf-8")
    assert read_run(path).epochs == 3
    path.write_text(path.read_text(encoding="utf-8").replace("epochs = 3", "epochs = 4"))
    with pytest.raises(TrainError, match=r"settings.toml was damaged or edited .*--accept"):
        read_run(path)
    assert read_run(path, accepted=True).epochs == 4
    assert from_dict(read_toml(path), "a configuration").epochs == 4
