from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

import st3fx
from st3fx.cli import main
from st3fx.cli.convert import reach_line, train_command
from st3fx.cli.options import METHOD_NAMES
from st3fx.cli.views.plan import skipped_lines
from st3fx.commands.convert import load_bundle
from st3fx.files.bundle import read_bundle
from st3fx.files.reading import sealed
from st3fx.methods import METHODS
from st3fx.plan.sites import SkippedSite, SparsityPlan
from tests.models import TINY, write


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with model.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path, "model.py", TINY)
    return tmp_path


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, ["convert", *args])


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_writes_a_bundle_and_says_so(folder: Path) -> None:
    result = _run("model.py")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["conv.weight", "conv2d", "4x3x3x3", "108", "84.38%", "x"] in lines
    assert ["head.weight", "linear", "5x4", "20", "15.62%", "↑"] in lines
    assert "1 island, 1 graph (train and eval in one)," in result.stdout
    assert "2 sites with 128 of 145 parameters (88.3%); st3 at 0.9 sparsity" in result.stdout
    assert result.stdout.endswith(
        "leaves about 13 of them; wrote model.st3fx\n"
        "next: st3fx train model.st3fx --data loaders.py:make_loaders\n"
    )
    assert _files(folder) == {
        "model.py",
        "model.st3fx",
        "model.st3fx/graph.txt",
        "model.st3fx/manifest.json",
        "model.st3fx/model.safetensors",
    }
    assert "soft_threshold" in (folder / "model.st3fx" / "graph.txt").read_text()


def test_load_bundle_gives_the_model_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--seed", "7", "--total-steps", "100", "--method", "st3-sigma", "--skip-last")
    assert _run("model.py", "-o", "out/b", *options).exit_code == 0
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    bundle = read_bundle(folder / "out" / "b")
    model, again = load_bundle(folder / "out" / "b"), load_bundle(folder / "out" / "b")
    state = model.state_dict()
    assert state.keys() == bundle.state_dict.keys()
    assert all(torch.equal(value, bundle.state_dict[key]) for key, value in state.items())
    assert bundle.manifest.recipe.method["normalize"] == "sigma"
    assert [site.name for site in bundle.manifest.plan.sites] == ["conv.weight"]
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(model.eval()(x), again.eval()(x))


def test_a_bundle_of_before_calls_one_output_a_matmul(folder: Path) -> None:
    write(folder, "model.py", TINY.replace("5)", "1)"))
    assert _run("model.py").exit_code == 0
    path = folder / "model.st3fx" / "manifest.json"
    manifest = json.loads(path.read_text())
    head = manifest["plan"]["sites"][-1]
    assert (head["op"], head["shape"][0]) == ("linear", 1)
    head["op"], head["layout"]["channel_dims"] = "matmul", []
    del manifest["digest"]
    path.write_text(json.dumps(sealed(manifest)))
    plan: Any = load_bundle(folder / "model.st3fx").st3fx_plan
    assert plan.sites[-1].op == "linear"


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_converts(folder: Path, method: str) -> None:
    result = _run("model.py", "--method", method)
    assert result.exit_code == 0, result.output
    recipe = read_bundle(folder / "model.st3fx").manifest.recipe
    assert recipe.method["name"] == METHODS[method]().name


def test_a_method_takes_settings_of_its_own(folder: Path) -> None:
    asked = ("--granularity", "block:2", "--method-option", "rescale=false")
    assert _run("model.py", *asked).exit_code == 0
    recipe = read_bundle(folder / "model.st3fx").manifest.recipe
    assert (recipe.method["granularity"], recipe.method["rescale"]) == ("block:2", False)
    for wrong in (("--method-option", "rescale"), ("--granularity", "rows")):
        refused = _run("model.py", *wrong, "-o", "other.st3fx")
        assert refused.exit_code == 2
        assert wrong[1] in refused.stderr


def test_a_learned_sparsity_cannot_be_set(folder: Path) -> None:
    result = _run("model.py", "--method", "dst", "--sparsity", "0.9")
    assert result.exit_code == 2
    assert "method 'dst'" in result.stderr
    assert "its settings are alpha, granularity" in result.stderr
    assert _files(folder) == {"model.py"}


def test_weights_are_loaded(folder: Path) -> None:
    from st3fx.loading.spec import load_spec

    state = load_spec("model.py", seed=5).model.state_dict()
    torch.save({"state_dict": state}, folder / "w.pt")
    assert _run("model.py", "--weights", "w.pt").exit_code == 0
    loaded = load_bundle("model.st3fx").state_dict()
    assert torch.equal(loaded["conv.weight"], state["conv.weight"])


@pytest.mark.parametrize("keep", [True, False])
def test_zeros_of_the_weights_stay_unless_they_are_let_go(folder: Path, keep: bool) -> None:
    from st3fx.loading.spec import load_spec

    state = load_spec("model.py", seed=5).model.state_dict()
    zero = torch.rand(state["conv.weight"].shape) < 0.5
    state["conv.weight"][zero] = 0
    torch.save(state, folder / "w.pt")
    options = () if keep else ("--no-keep-zeros",)
    result = _run("model.py", "--weights", "w.pt", "--total-steps", "4", *options)
    assert result.exit_code == 0, result.output
    assert read_bundle("model.st3fx").manifest.recipe.keep_zeros is keep
    model = load_bundle("model.st3fx")
    sparsifier = st3fx.Sparsifier(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    sparsifier.set_sparsity(0.2)
    stay = st3fx.fold(model).get_parameter("conv.weight")[zero] == 0
    assert bool(stay.all()) is keep
    assert "--no-keep-zeros" in _run("--help").stdout


def test_dry_run_writes_nothing(folder: Path) -> None:
    before = _files(folder)
    result = _run("model.py", "--dry-run", "--exclude", "head*")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("dry run, nothing was written\n")
    skipped = result.stdout.partition("skipped")[2]
    assert "head.weight" in skipped
    assert "exclude" in skipped
    assert _files(folder) == before


def test_json_is_all_there_is(folder: Path) -> None:
    write(folder, "loud.py", TINY + "\n    print('hello from the model')\n")
    result = _run("loud.py", "--json", "--sparsity", "0.5", "--input", "2x3x8x8")
    data = json.loads(result.stdout)
    assert result.stderr == "hello from the model\n"
    assert data["bundle"] == "loud.st3fx"
    assert data["method"]["sparsity"] == data["plan"]["target"] == 0.5
    assert (data["site_parameters"], data["total_parameters"]) == (128, 145)
    assert [site["name"] for site in data["plan"]["sites"]] == ["conv.weight", "head.weight"]
    assert json.loads(_run("loud.py", "--json", "--dry-run").stdout)["bundle"] is None


def test_force_replaces_the_bundle(folder: Path) -> None:
    assert _run("model.py", "--seed", "1").exit_code == 0
    first = read_bundle("model.st3fx")
    assert _run("model.py", "--seed", "2", "--force").exit_code == 0
    second = read_bundle("model.st3fx")
    assert not torch.equal(first.state_dict["conv.weight"], second.state_dict["conv.weight"])
    assert {path.name for path in folder.iterdir()} == {"model.py", "model.st3fx"}


RAISES = "from torch import nn\ndef build_model():\n    raise ValueError('no such width')\n"
TWO = "from torch import nn\nclass A(nn.Module): pass\nclass B(nn.Module): pass\n"
NO_WEIGHT = "from torch import nn\ndef build_model(): return nn.BatchNorm2d(3)\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("modle.py", "error: no file modle.py; did you mean model.py?"),
        ("notes.txt", "error: notes.txt is not a Python file (.py)"),
        ("resnet18", "error: 'resnet18' is not a SPEC: give model.py, model.py:factory, "),
        ("empty.py", "error: empty.py has no build_model() and no nn.Module class that takes "),
        ("two.py", "error: two.py defines several models (A, B): name one, e.g. two.py:A "),
        ("raises.py", "error: raises.py: build_model() raised ValueError: no such width"),
        ("model.py --weights none.pt", "error: no weight file none.pt"),
        ("model.py --weights notes.txt", "error: notes.txt is not a checkpoint, or is broken"),
        ("model.py --weights other.pt", "error: weights other.pt do not fit the model: missing "),
        ("model.py --sparsity 1", "error: sparsity 1.0 is outside [0, 1)"),
        ("model.py --sparsity -0.1", "error: sparsity -0.1 is outside [0, 1)"),
        ("model.py --sparsity nan", "error: sparsity nan is outside [0, 1)"),
        ("model.py --input 2x3x8x8:int46", "error: --input '2x3x8x8:int46': unknown dtype"),
        ("model.py --input 2x5x8x8", "error: Tiny refuses the example inputs"),
        ("model.py --input 2x3x8x8 --input 1", "error: Tiny refuses the example inputs"),
        ("model.py --include nothing*", "error: 'nothing*' matches no site"),
        ("no_weight.py --input 2x3x8x8", "error: BatchNorm2d has no parameter that feeds a "),
        ("no_weight.py", "error: no example inputs for no_weight.py: give --input SHAPE, e.g. "),
        ("torchvision:resnet51", "error: torchvision has no model 'resnet51'; did you mean "),
        ("model.py -o taken", "error: taken exists: choose another folder, or replace it by "),
        ("model.py -o taken --force", "error: taken is not a bundle, and --force replaces only"),
    ],
)
def test_bad_input_is_one_line_and_loses_nothing(folder: Path, args: str, message: str) -> None:
    write(folder, "notes.txt", "hello")
    write(folder, "empty.py", "x = 1")
    write(folder, "two.py", TWO)
    write(folder, "raises.py", RAISES)
    write(folder, "no_weight.py", NO_WEIGHT)
    write(folder, "taken/diary.txt", "dear")
    torch.save({"a": torch.ones(2)}, folder / "other.pt")
    before = _files(folder)
    result = _run(*args.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *users, last = result.stderr.splitlines()
    assert last.startswith(message)
    if users:
        # Only what the user's own code raised has a traceback, and its first frame is theirs.
        assert users[0] == "Traceback (most recent call last):"
        assert f'File "{folder}' in users[1]
        assert "st3fx/" not in result.stderr.replace(str(folder), "")
    assert _files(folder) == before
    assert (folder / "taken" / "diary.txt").read_text() == "dear"


def test_the_users_traceback_is_shown(folder: Path) -> None:
    write(folder, "raises.py", RAISES)
    assert _run("raises.py").stderr == (
        "Traceback (most recent call last):\n"
        f'  File "{folder / "raises.py"}", line 3, in build_model\n'
        "    raise ValueError('no such width')\n"
        "ValueError: no such width\n"
        "error: raises.py: build_model() raised ValueError: no such width\n"
    )


def test_a_syntax_error_shows_its_line(folder: Path) -> None:
    write(folder, "broken.py", "def f(:\n")
    result = _run("broken.py")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == f'  File "{folder / "broken.py"}", line 1'
    assert "def f(:" in result.stderr


def test_inputs_that_the_model_refuses_show_where(folder: Path) -> None:
    result = _run("model.py", "--input", "2x5x8x8")
    assert f'File "{folder / "model.py"}", line ' in result.stderr
    assert "in forward" in result.stderr
    assert "site-packages" not in result.stderr


def test_a_bug_of_ours_is_no_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("st3fx.commands.convert.convert_spec", fail)
    result = _run("model.py")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_method_names_are_those_of_the_table() -> None:
    assert sorted(METHOD_NAMES) == sorted(METHODS)


@pytest.mark.parametrize("command", [[], ["convert"]])
def test_help_for_everything(command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    shown = main.commands[command[0]] if command else main
    assert shown.help
    # An argument has no help of its own: the command's text explains it.
    options = [item for item in shown.params if isinstance(item, click.Option)]
    assert all(option.help for option in options), [option.name for option in options]
    arguments = [item for item in shown.params if isinstance(item, click.Argument)]
    assert all(str(argument.metavar) in shown.help for argument in arguments)


def _process(*args: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-m", "st3fx", *args]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=120
    )


@pytest.mark.slow
def test_as_a_process(folder: Path) -> None:
    result = _process("convert", "model.py", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["bundle"] == "model.st3fx"
    result = _process("convert", "model.py")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: model.st3fx exists: choose another folder, or replace it by --force"
    ]


def test_version_as_a_process() -> None:
    from st3fx.version import VERSION

    result = _process("--version")
    assert (result.returncode, result.stdout) == (0, f"st3fx, version {VERSION}\n")


LANGUAGE = """
    import torch
    from torch import nn

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.inner = nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.inner(self.embed(ids)).relu())

    def example_inputs():
        return torch.tensor([[1, 2, 3], [4, 5, 19]])
"""


def test_a_tied_projection_is_sparse_where_it_is_asked_for(folder: Path) -> None:
    write(folder, "language.py", LANGUAGE)
    result = _run("language.py", "-o", "dense")
    assert "embed.weight" in result.stdout
    assert "tied" in result.stdout
    assert _run("language.py", "--include-tied", "-o", "sparse").exit_code == 0
    plan = read_bundle(folder / "sparse").manifest.plan
    assert [site.name for site in plan.sites] == ["inner.weight", "head.weight"]
    model: Any = load_bundle(folder / "sparse")
    assert model.get_parameter("head.weight") is model.embed.weight
    st3fx.Sparsifier(model).set_sparsity(0.5)
    folded: Any = st3fx.fold(model)
    assert int((folded.head.weight == 0).sum()) > 0
    assert bool((folded.embed.weight != 0).all())


@pytest.mark.slow
def test_a_sequence_length_may_be_free_in_the_file(folder: Path) -> None:
    write(folder, "language.py", LANGUAGE)
    options = ("--sparsity", "0.5", "--free", "ids:1=sequence", "--json", "-o", "x.onnx")
    result = CliRunner().invoke(main, ["export", "language.py", *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["inputs"][0]["shape"] == ["batch", "sequence"]
    result = CliRunner().invoke(main, ["export", "language.py", "--free", "ids=sequence"])
    assert result.exit_code == 2
    assert "give INPUT:DIM=NAME, e.g. input_ids:1=sequence" in result.stderr


def test_explains_one_weight_and_writes_nothing(folder: Path) -> None:
    result = _run("model.py", "--explain", "conv.weight")
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    assert first == "conv.weight: sparse: conv2d multiplies with it (4x3x3x3, 108 parameters)"
    assert lines[0].split() == ["multiplied", "in", "conv"]
    assert lines[1].split()[:4] == ["graph", "of", "(the", "model)"]
    assert _files(folder) == {"model.py"}


def test_an_explanation_and_a_bundle_are_asked_for_apart(folder: Path) -> None:
    result = _run("model.py", "--explain", "conv.weight", "-o", "there.st3fx")
    assert result.exit_code == 2
    assert "--explain and --output: an explanation writes no bundle" in result.output
    assert _files(folder) == {"model.py"}


def test_explains_as_json_too() -> None:
    result = _run("model.py", "--explain", "(the model)", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"] == "is captured as a graph"


def test_explaining_an_unknown_name_is_an_error(folder: Path) -> None:
    result = _run("model.py", "--explain", "conv.wieght")
    assert result.exit_code == 2
    assert "did you mean conv.weight" in result.output
    assert _files(folder) == {"model.py"}


def test_says_how_much_is_reached() -> None:
    result = _run("model.py", "--dry-run")
    assert "128 of 128 prunable parameters reached (100.0%); --explain NAME" in result.stdout


def test_says_what_the_skipped_ones_are_that_do_not_count() -> None:
    skipped = (
        SkippedSite("table", (5, 4), "none", "its rows are looked up"),
        SkippedSite("vector", (3,), "linear", "a vector of 3"),
        SkippedSite("dense", (2, 2), "linear", "excluded"),
    )
    line = reach_line(SparsityPlan((), skipped))
    assert line == (
        "0 of 4 prunable parameters reached (0.0%); 23 skipped ones are in no product, or vectors; "
        "--explain NAME says why"
    )


def test_quiet_is_the_summary_alone_with_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "model.py", TINY)
    done = CliRunner().invoke(main, ["convert", "model.py", "-q", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "parameters reached" in done.stdout
    assert "sites\n" not in done.stdout
    assert "next:" not in done.stdout
    done = CliRunner().invoke(main, ["convert", "model.py", "--exclude", "*", "-q", "--json"])
    assert "--quiet and --json" in done.stderr


@pytest.mark.parametrize(
    ("inputs", "data"),
    [
        (("2x1x28x28:float32",), ""),
        (("2x3x32x32",), " --data cifar10 --data-path DIR"),
        (("2x3x224x224",), " --data imagefolder --data-path DIR"),
        (("2x16:int64",), " --data loaders.py:make_loaders"),
        (("2x3x8x8", "2x1"), " --data loaders.py:make_loaders"),
        (None, " --data loaders.py:make_loaders"),
    ],
)
def test_the_next_command_has_data_of_the_examples_kind(
    inputs: tuple[str, ...] | None, data: str
) -> None:
    assert train_command(inputs, Path("a b.st3fx")) == f"st3fx train 'a b.st3fx'{data}"


def test_what_stays_dense_is_counted_by_reason() -> None:
    skipped = [
        SkippedSite("a", (4, 5), "conv2d", "excluded"),
        SkippedSite("b", (40, 5), "conv2d", "excluded"),
        SkippedSite("c", (3, 3), "none", "in no product"),
    ]
    assert skipped_lines(skipped) == [
        "2, the largest b 40x5: excluded", "c 3x3: in no product",
    ]  # fmt: skip
    assert skipped_lines(skipped, whole=True)[1] == "b 40x5: excluded"
