"""Messages that advise an option or a command: who follows them to the letter gets on."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from st3fx.cli import main
from st3fx.commands.inspect import look
from tests.models import write
from tests.training.runs import NET

EXAMPLE = (
    "\n    def example_inputs():\n        import torch\n        return torch.ones(2, 1, 28, 28)\n"
)

ODD = """
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Odd(Dataset):
        def __len__(self):
            return 40
        def __getitem__(self, index):
            if index == 3:
                raise ValueError("no image")
            return torch.full((1, 28, 28), index / 40), index % 10

    def make_loaders(batch_size, seed):
        return DataLoader(Odd(), batch_size=10), DataLoader(Odd(), batch_size=20)
"""


@dataclass(frozen=True)
class Advice:
    """What goes wrong, and what is advised.

    Attributes:
        line: The command that is refused.
        says: Part of its message.
        then: Each of these works; ``{line}`` stands for the line, ``{command}`` for a command that
            the message has between ``st3fx`` and its next mark.
    """

    line: str
    says: str
    then: tuple[str, ...]


TRAIN = "train model.py --epochs 1 --batch-size 800 -o"

ADVICE = {
    "dense": Advice(
        "fold 'b 1' -o f.safetensors",
        "train it (st3fx train 'b 1'), prune it now by --sparsity, or take it as it is by "
        "--allow-dense",
        ("{line} --sparsity 0.5", "{line} --allow-dense --force",
         "{command} --trust --epochs 1 --batch-size 800"),
    ),
    "spec without zeros": Advice(
        "fold model.py -o f.safetensors",
        "prune it now by --sparsity, load folded weights by --weights, or take it as it is by "
        "--allow-dense",
        ("{line} --sparsity 0.5", "{line} --weights 'run 1/folded.safetensors' --force",
         "{line} --allow-dense --force"),
    ),
    "exists": Advice("convert model.py -o 'b 1'", "replace it by --force", ("{line} --force",)),
    "no inputs": Advice(
        "fold plain.py --sparsity 0.5 -o f.safetensors",
        "give --input SHAPE",
        ("{line} --input 2x1x28x28",),
    ),
    "not trusted": Advice(
        "analyze 'b 1'",
        "give --trust to run it and remember that for this folder, or --model SPEC",
        ("{line} --model model.py", "{line} --trust", "{line}"),
    ),
    "run exists": Advice(
        f"{TRAIN} 'run 1'",
        "go on with it by --resume 'run 1', choose another --output-dir, or replace it by --force",
        ("train --resume 'run 1' --trust", f"{TRAIN} 'run 2'", "{line} --force"),
    ),
    "no data": Advice(
        "sensitivity 'b 1' --trust --images 8 --sparsity 0.5",
        "or give --data",
        ("{line} --data fashion-mnist-mini",),
    ),
    "no result": Advice(
        "sensitivity 'run 1' --trust --reuse --budget 0.5",
        "cannot read run 1/sensitivity.json",
        ("sensitivity 'run 1' --trust --images 8 --sparsity 0.5,0.9", "{line}"),
    ),
    "weights": Advice(
        "analyze 'run 1/folded.safetensors'",
        "holds weights and no graph: st3fx analyze SPEC --weights 'run 1/folded.safetensors'",
        ("{command}",),
    ),
    "page": Advice(
        "report 'run 1' --trust -o notes.txt", "replace it by --force", ("{line} --force",)
    ),
    "comparison": Advice(
        "compare 'run 1' 'b 1' --trust -o notes.txt", "replace it by --force", ("{line} --force",)
    ),
    "picked": Advice(
        "sweep 'run 1' --trust --no-bench --sparsity 0.5 --pick 'sparsity<0.7' --into small",
        "choose another --into, or replace it by --force",
        ("{line}2", "{line} --force"),
    ),
    "no model yet": Advice(
        "bench 'run 3' --trust",
        "go on with it by st3fx train --resume 'run 3'",
        ("{command} --trust", "fold 'run 3/model.st3fx' --trust -o f.safetensors"),
    ),
    "bad sample": Advice(
        "train model.py --data odd.py --epochs 1 -o 'run 4'",
        "leave single bad samples out by --on-bad-sample skip",
        # The run that stopped is there: what --force replaces, as the next message says.
        (
            "train --resume 'run 4' --on-bad-sample skip --trust",
            "{line} --on-bad-sample skip --force",
        ),
    ),
    "changed": Advice(
        "train --resume 'run 5' --trust",
        "go on all the same by --accept-changes, or start anew in another --output-dir",
        ("{line} --accept-changes", f"{TRAIN} 'run 6'"),
    ),
}  # fmt: skip


def said(line: str) -> Result:
    """A command, in this process."""
    return CliRunner().invoke(main, shlex.split(line))


def done(line: str) -> None:
    """It works."""
    result = said(line)
    assert result.exit_code == 0, f"{line}: {result.stderr[-500:]}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advice")
    write(folder, "model.py", NET + EXAMPLE)
    write(folder, "plain.py", NET)
    write(folder, "odd.py", ODD)
    (folder / "notes.txt").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ST3FX_TRUST", str(folder / "mine.json"))
        done("convert model.py -o 'b 1'")
        done(f"{TRAIN} 'run 1'")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, where nothing is trusted yet."""
    folder = tmp_path / "w"
    shutil.copytree(made, folder, ignore=lambda *_: ["mine.json"])
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ST3FX_TRUST", str(tmp_path / "trust.json"))
    return folder


def _picked() -> None:
    done("sweep 'run 1' --trust --no-bench --sparsity 0.5 --pick 'sparsity<0.7' --into small")


def _no_model_yet() -> None:
    shutil.copytree("run 1", "run 3")
    shutil.rmtree("run 3/model.st3fx")


def _changed() -> None:
    shutil.copytree("run 1", "run 5")
    text = Path("model.py").read_text(encoding="utf-8")
    Path("model.py").write_text(f"{text}\n# another line\n", encoding="utf-8")


BEFORE: dict[str, Callable[[], None]] = {
    "picked": _picked, "no model yet": _no_model_yet, "changed": _changed,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ADVICE)
def test_who_follows_a_message_gets_on(name: str, here: Path) -> None:
    advice = ADVICE[name]
    BEFORE.get(name, lambda: None)()
    refused = said(advice.line)
    assert refused.exit_code == 2, refused.output
    assert advice.says in refused.stderr
    command = re.search(r"(?<![.\w])st3fx ((?:'[^']*'|[^',;:()])+)", refused.stderr)
    for then in advice.then:
        spelt = "" if command is None else command[1].replace("SPEC", "model.py").strip()
        done(then.format(line=advice.line, command=spelt))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["b 1", "run 1", "run 1/folded.safetensors"])
def test_what_inspect_advises_works(what: str, here: Path) -> None:
    long = ("bench", "export", "quantize")  # tried by tests of their own
    steps = [shlex.split(step.command) for step in look(what).steps if "st3fx." not in step.command]
    assert steps
    for step in steps:
        assert step[0] == "st3fx"
        assert any(Path(word).exists() for word in step[1:]), step
        if step[1] in long:
            continue
        own = {"train": ["--epochs", "1", "--batch-size", "800"], "convert": ["-o", "new"],
               "fold": ["--force"]}.get(step[1], [])  # fmt: skip
        done(shlex.join([*step[1:], *own, *(["--trust"] if step[1] in TRUSTED else [])]))


TRUSTED = ("train", "fold", "analyze", "report")
