"""Lines that are wrong on purpose: each is refused in one line, and changes no file.

Lines are made from click's own tree of commands and options, so that a new option is tried too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
from click.testing import CliRunner, Result

from st3fx.cli import main
from tests.models import TINY, write

BUILT = "built.txt"
"""The model's file says here that it ran: what is wrong in a line is seen before."""

SOURCE = f"{TINY}\n    __import__('pathlib').Path({BUILT!r}).touch()\n    NUMBER = 3\n"

BASE = {
    "convert": ("model.py",),
    "train": ("model.py",),
    "fold": ("bundle", "--trust"),
    "export": ("bundle", "--trust"),
    "quantize": ("bundle", "--trust"),
    "analyze": ("bundle", "--trust"),
    "bench": ("bundle", "--trust"),
    "report": ("bundle",),
    "compare": ("bundle", "bundle"),
    "sensitivity": ("bundle", "--trust"),
    "sweep": ("bundle", "--trust"),
    "inspect": ("bundle",),
    "demo": (),
    "doctor": (),
    "completion": ("bash",),
}
"""Each command with as little as it needs; of all but the first line nothing is ever run."""

TOGETHER = (
    "convert model.py --explain conv -o out",
    "train model.py --resume runs --force",
    "train model.py --resume runs --config settings.toml",
    "train model.py --amp --precision fp16",
    "train model.py --target-macs 0.5 --sparsity 0.5",
    "train model.py --target-macs 0.5 --budget weights",
    "train model.py --test-only --force",
    "train model.py --milestones 3",
    "train model.py --sched multistep",
    "train model.py --sched multistep --milestones 3 --min-lr 0.1",
    "train model.py --opt adamw --momentum 0.9",
    "train model.py --opt adam --nesterov",
    "train model.py --model-ema-decay 0.9",
    "train model.py --fsdp --model-ema",
    "train model.py --epochs 2 --warmup-epochs 3",
    "train model.py --ramp 0.9,0.1",
    "fold bundle --compact --eliminate-dead-channels",
    "fold bundle --eliminate-dead-channels -o out.st3w",
    "fold bundle --sparsity 0.5 --allow-dense",
    "export bundle --no-verify --tolerance 0.1",
    "export bundle --no-verify --batch-sizes 2",
    "export bundle --fixed-batch --batch-sizes 2",
    "export bundle --sparse-kernels --free x:2=side",
    "export model.onnx --sparse-kernels --opset 17",
    "export model.onnx",
    "export model.onnx --sparse-kernels -o model.onnx --force",
    "quantize bundle --percentile 99",
    "quantize bundle --calibration entropy --percentile 99",
    "quantize bundle --held-out-images 10",
    "quantize bundle --lr 0.1",
    "quantize bundle --learn-scales",
    "quantize bundle --sparsity 0.5 --allow-dense",
    "quantize bundle --data fashion-mnist-mini -o out.onnx -x out.onnx",
    "bench bundle -t 3 --iterations 5",
    "bench --calibrate bundle",
    "bench --calibrate --sparsity 0.5",
    "bench --calibrate -x out.json",
    "bench model.onnx -x model.onnx --force",
    "bench bundle -b 2,2",
    "analyze model.onnx --json --csv -",
    "analyze model.onnx --csv model.onnx --force",
    "report bundle --bench taken -o taken --force",
    "demo --resume --force",
    "sweep bundle --no-bench -t 1",
    "sweep bundle --no-bench -ncores 1",
    "sweep bundle --into out",
    "sweep bundle --pick drop --data fashion-mnist-mini",
    "sweep bundle --pick ms<1 --no-bench --data fashion-mnist-mini",
    "sweep bundle -o out.json --data fashion-mnist-mini",
    "sweep bundle -o out.html --png out.html --data fashion-mnist-mini",
    "sweep bundle",
    "sensitivity bundle",
    "sensitivity bundle --budget 0.5 --budget-macs 0.5",
    "sensitivity bundle --budget 0.5 --budget-ms 3",
    "sensitivity bundle --global",
    "sensitivity bundle --global --budget-ms 3 --reuse",
    "sensitivity bundle --global --budget-ms 3 --html out.html",
    "sensitivity bundle --reuse",
    "sensitivity bundle -o out.toml",
    "sensitivity bundle --budget 0.5 -x out -o out --data fashion-mnist-mini",
    "sensitivity bundle --method st3",
    "sensitivity bundle --granularity block:4",
    "compare bundle",
    "compare bundle bundle/",
    "compare bundle empty -o bundle/manifest.json",
    "inspect bundle --top 3 --all",
    "convert model.py --sparsity-of settings.toml",
)
"""Options that contradict each other, or results that would replace what they are made from."""


UNASKED = ("report", "inspect")
"""Commands that take no ``--trust`` here."""


@functools.cache
def _ready() -> Path:
    """A folder with all that lines name: made once."""
    folder = Path(tempfile.mkdtemp(prefix="st3fx-wrong-"))
    os.environ["ST3FX_TRUST"] = str(folder / "trust.json")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write(folder, "model.py", SOURCE)
        for line in ("convert model.py -o bundle", "export model.py --sparsity 0.5 -o model.onnx"):
            result = CliRunner().invoke(main, line.split())
            assert result.exit_code == 0, result.output
    finally:
        os.chdir(before)
    (folder / BUILT).unlink()
    write(folder, "noise.bin", "\x00\x01 no file of anybody's \x1b[31m")
    write(folder, "settings.toml", "epochs = 1\n")
    write(folder, "taken", "{}")
    (folder / "empty.onnx").touch()
    (folder / "empty").mkdir()
    write(folder, "empty/inner/notes.txt", "a folder, and no bundle")
    return folder


def case(seed: int, folder: Path) -> str | None:
    """One wrong line."""
    ready = _ready()
    shutil.copytree(ready, folder, dirs_exist_ok=True, ignore=lambda *_: ["trust.json"])
    before = _snapshot(folder)
    choose = random.Random(seed)
    kind = choose.choice(KINDS)
    line = kind(choose)
    result = CliRunner().invoke(main, line)
    if kind in (_no_spec, _no_file, _no_name):  # what is wrong is seen when it is looked for
        (folder / BUILT).unlink(missing_ok=True)
    return _judge(line, result, before, _snapshot(folder))


def _judge(
    line: list[str], result: Result, before: dict[str, str], after: dict[str, str]
) -> str | None:
    said = " ".join(map(repr, line))
    if result.exit_code != 2:
        return f"{said}: exit code {result.exit_code}, {result.exception!r}, {result.output[:200]}"
    text = result.stderr
    if not (text.startswith("error: ") and text.endswith("\n") and text[:-1].isprintable()):
        return f"{said}: {text[:300]!r}"
    if result.stdout:
        return f"{said}: stdout has {result.stdout[:200]!r}"
    changed = sorted({name for name, _ in before.items() ^ after.items()})
    return f"{said}: changed {', '.join(changed)}; {text}" if changed else None


def _snapshot(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*"):
        is_file = path.is_file() and "__pycache__" not in path.parts
        content = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
        if "__pycache__" not in path.parts:
            found[str(path.relative_to(folder))] = content
    return found


def _options(
    choose: random.Random, wanted: Callable[[click.Option], bool]
) -> tuple[str, click.Option]:
    """A command and one of its options."""
    found = [
        (name, option)
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and wanted(option)
    ]
    return choose.choice(found)


def _takes_value(option: click.Option) -> bool:
    return not option.is_flag and not option._flag_needs_value


def _misspelt(choose: random.Random) -> list[str]:
    name, option = _options(choose, lambda _: True)
    long = max(option.opts, key=len)
    place = choose.randrange(2, len(long))
    letter = choose.choice("qxz_")
    wrong = choose.choice([long[:place] + letter + long[place:], long + letter, f"--{letter}"])
    return [name, *BASE[name], wrong]


def _no_value(choose: random.Random) -> list[str]:
    name, option = _options(choose, _takes_value)
    return [name, *BASE[name], choose.choice(option.opts)]


def _no_number(choose: random.Random) -> list[str]:
    name, option = _options(choose, lambda o: o.type.name in _NUMBERS)
    return [name, *BASE[name], option.opts[-1], choose.choice(("many", "", "1e", "0x1", "1;2"))]


def _out_of_range(choose: random.Random) -> list[str]:
    name, option = _options(choose, lambda o: o.type.name in _NUMBERS)
    values = ["-1", "-1000000000000000000000"]
    if "float" in option.type.name or "number" in option.type.name:
        values += ["nan", "inf", "-inf", "-0.001"]
    return [name, *BASE[name], *_PARTNERS.get(str(option.name), ()), option.opts[-1],
            choose.choice(values)]  # fmt: skip


_NUMBERS = ("integer", "float", "integer range", "float range", "numbers")

_PARTNERS = {
    "percentile": ("--calibration", "percentile"),
    "held_out_images": ("--max-drop", "1"),
    "lr": (),
    "milestones": ("--sched", "multistep"),
    "lr_gamma": ("--sched", "multistep", "--milestones", "3"),
    "model_ema_decay": ("--model-ema",),
}
"""Option -> what makes it mean something."""


def _no_choice(choose: random.Random) -> list[str]:
    name, option = _options(choose, lambda o: isinstance(o.type, click.Choice))
    return [name, *BASE[name], option.opts[-1], choose.choice(("none such", "", "-"))]


def _contradiction(choose: random.Random) -> list[str]:
    line = choose.choice(TOGETHER).split()
    return [*line, "--trust"] if "bundle" in line and line[0] not in UNASKED else line


def _too_many(choose: random.Random) -> list[str]:
    name = choose.choice([name for name in BASE if name not in ("bench", "compare")])
    return [name, *BASE[name], *([] if BASE[name] else ["one"]), "one-more"]


def _no_spec(choose: random.Random) -> list[str]:
    name = choose.choice([
        "convert", "train", "fold", "export", "quantize", "analyze", "bench", "sweep",
        "sensitivity", "inspect",
    ])  # fmt: skip
    spec = choose.choice([
        "missing.py", "missing/", "missing.onnx", "model.py:missing", "model.py:NUMBER",
        "model.py:", ":", "a:b:c", "torchvision:none_such", "timm:", "st3fx:resnet21", "nowhere:f",
        "os:getcwd", "os.path:join", "noise.bin", "empty", "empty.onnx", "settings.toml", "", " ",
        "bundle/manifest.json", "\x1b[31mred.py", "a\nb.py", ".", "/dev/null", "~nobody/x.py",
    ])  # fmt: skip
    return [name, spec]


def _no_name(choose: random.Random) -> list[str]:
    option = choose.choice(("--exclude", "--explain", "--exclude none.* --explain"))
    return ["convert", "model.py", *option.split(), "none.such"]


def _no_file(choose: random.Random) -> list[str]:
    wrong = choose.choice(["missing.bin", "noise.bin", "empty", "empty.onnx", "missing/x", ""])
    line = choose.choice([
        "convert model.py --weights", "train model.py --weights", "train --config",
        "train --resume", "train bundle --resume", "report", "report bundle --bench",
        "analyze model.py --weights", "fold model.py --weights",
        "train model.py --data", "train model.py --data imagefolder --data-path",
        "train model.py --data cifar10 --data-path", "bench model.onnx --custom-ops",
        "quantize bundle --trust --data cifar10 --data-path", "fold bundle --model",
        "inspect", "sweep", "sweep bundle --trust --data", "sensitivity bundle --trust --reuse -x",
        "convert model.py --sparsity-of", "train model.py --sparsity-of",
    ])  # fmt: skip
    return [*line.split(), wrong]


def _no_place(choose: random.Random) -> list[str]:
    line, flag = choose.choice([
        ("convert model.py", "-o"), ("train model.py", "-o"),
        ("fold bundle --trust --sparsity 0.5", "-o"), ("analyze model.onnx", "--csv"),
        ("export bundle --trust --sparsity 0.5", "-o"),
        ("quantize bundle --trust --sparsity 0.5 --data fashion-mnist-mini", "-o"),
        ("bench model.onnx", "-x"), ("report bundle", "-o"), ("report bundle", "--png"),
        ("demo", "-o"),
        ("quantize bundle --trust --sparsity 0.5 --data fashion-mnist-mini", "-x"),
        ("sweep bundle --trust --data fashion-mnist-mini", "-o"),
        ("sweep bundle --trust --data fashion-mnist-mini", "--png"),
        ("sweep bundle --trust --data fashion-mnist-mini --pick sparsity>0", "--into"),
        ("sensitivity bundle --trust --data fashion-mnist-mini", "-x"),
        ("sensitivity bundle --trust --data fashion-mnist-mini", "--html"),
        ("sensitivity bundle --trust --data fashion-mnist-mini --budget 0.5", "-o"),
        ("compare bundle empty --trust", "-o"), ("compare bundle empty --trust", "--png"),
    ])  # fmt: skip
    # A file stands where a folder would have to be, or something is there already.
    place = choose.choice(["taken/inside", "taken/in/side", "taken"])
    if flag == "--png" and place == "taken":
        place = "taken/inside"
    return [*line.split(), flag, place]


def _no_setting(choose: random.Random) -> list[str]:
    return choose.choice([
        "convert model.py --granularity block:0", "convert model.py --granularity nm:4:2",
        "convert model.py --granularity sometimes", "convert model.py --method-option none=1",
        "convert model.py --method-option rescale", "convert model.py --method str --sparsity 0.5",
        "convert model.py -i 1x3xx8", "convert model.py -i 1x3:float99", "convert model.py -i 0:",
        "convert model.py --input 1x-3",
        "train model.py --recipe none", "train model.py --ramp 1",
        "train model.py --method dst --sparsity 0.5", "train model.py --granularity block:x",
        "export bundle --free x",
        "export bundle --free x:one=a", "export bundle --batch-sizes 0", "export bundle --opset 5",
        "export bundle --batch-sizes 1,a", "bench bundle -b 0", "bench bundle -ncores 0",
        "bench bundle --provider none", "analyze bundle --blocks 1",
        "quantize bundle --opset 9", "quantize bundle --percentile 3 --calibration percentile",
        "train model.py --data fashion-mnist-mini --data-path empty",
        "sweep bundle --trust --data fashion-mnist-mini --sparsity 1",
        "sweep bundle --trust --data fashion-mnist-mini --sparsity 50",
        "sweep bundle --trust --data fashion-mnist-mini --sparsity 0.5,0.5",
        "sweep bundle --trust --data fashion-mnist-mini --pick top1<3",
        "sensitivity bundle --trust --data fashion-mnist-mini --sparsity 1",
        "sensitivity bundle --trust --data fashion-mnist-mini --images 0",
        "sensitivity bundle --trust --data fashion-mnist-mini --budget-ms 0",
        "sensitivity bundle --trust --data none --budget 0.5",
    ]).split()  # fmt: skip


KINDS = (
    _misspelt, _no_value, _no_number, _out_of_range, _no_choice, _contradiction, _too_many,
    _no_spec, _no_file, _no_name, _no_place, _no_setting,
)  # fmt: skip
