"""Bundles, runs, recipes and files of somebody who wants his code to run when they are opened.

Each has code that would leave a mark. A random command opens it: the mark must not be there, and
the command ends by exit code 0, where what data says is enough, or 2 with one line.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import py_compile
import random
import shutil
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

import st3fx
from st3fx import methods
from st3fx.cli import main
from st3fx.commands.convert import convert_spec, save_bundle
from st3fx.errors import St3fxError
from st3fx.files.manifest import Recipe
from st3fx.loading import trust
from st3fx.loading.spec import load_spec
from st3fx.training.settings import Settings, to_toml
from tests.models import TINY, write

MARK = "ran"

NET = TINY.replace("Conv2d(3,", "Conv2d(1,").replace("2, 3, 8", "2, 1, 8").replace("4, 5", "4, 10")
"""Takes the images that come with st3fx."""

LOADERS = """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    def make_loaders(batch_size, seed):
        data = TensorDataset(torch.randn(8, 1, 8, 8), torch.arange(8) % 5)
        return DataLoader(data, batch_size=4), DataLoader(data, batch_size=4)
"""

PYTHONS = (
    "os:system", "os:getcwd", "subprocess:run", "sys:exit", "webbrowser:open", "shutil:rmtree",
    "antigravity:fly", "os.path:exists", "builtins:print", "pty:spawn", "__main__:main",
)  # fmt: skip
"""SPECs of what Python has itself."""

INSTALLED = (
    "torch.hub:list", "pip:main", "numpy.f2py:main", "torch.utils.collect_env:main", "timm:../x",
    "torchvision:../x", "timm:hf-hub:a/b", "timm:local-dir:.", "st3fx:__class__", "st3fx.cli:main",
    "torchvision.models:resnet18", "pytest:main",
)  # fmt: skip
"""SPECs of what is installed, or looks like it."""


def case(seed: int, folder: Path) -> str | None:
    """One attempt."""
    draw = random.Random(seed)
    attack = ATTACKS[seed % len(ATTACKS)]
    # In the short form, too, each attack meets several commands.
    path, modules, before = list(sys.path), set(sys.modules), dict(os.environ)
    os.environ["ST3FX_TRUST"] = str(folder / "state" / "trust.json")
    trust._ran.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # they are lines for the user, and no errors
            shutil.copytree(_bundle(), folder / "b")
            opened = attack(folder, draw)
            return _open(opened, folder, draw, attack.__name__)
    finally:
        os.environ.clear()
        os.environ.update(before)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).is_relative_to(folder):
                del sys.modules[name]


def _open(opened: str, folder: Path, draw: random.Random, what: str) -> str | None:
    """Let a command open it, and look for the mark."""
    verb = draw.choice(VERBS.get(opened) or [(*verb, opened) for verb in FILE_VERBS])
    line = f"{what}: {' '.join(verb)}"
    code, said = _python(folder) if verb == IN_PYTHON else _command(verb)
    lines = [text for text in said.splitlines() if not text.startswith("warning: ")]
    if (folder / MARK).exists():
        return f"{line} ran the code"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("error: ")):
        return f"{line} said {len(lines)} lines: {said[-300:]}"
    return None if code in (0, 2) else f"{line} ended by {code}: {said[-300:]}"


def _command(verb: tuple[str, ...]) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(verb))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 1, repr(result.exception)
    return result.exit_code, result.stderr


def _python(folder: Path) -> tuple[int, str]:
    try:
        st3fx.load_bundle(folder / "b")
    except St3fxError as error:
        return 2, f"error: {error}"
    return 0, ""


IN_PYTHON = ("load_bundle",)

BUNDLE_VERBS = (
    ("fold", "b", "-o", "x.safetensors"),
    ("fold", "b", "--eliminate-dead-channels", "-o", "x.pt2"),
    ("export", "b", "-o", "x.onnx", "--no-verify"),
    ("analyze", "b"),
    ("report", "b", "-o", "x.html"),
    ("bench", "b", "-t", "0.1", "--torch", "eager"),
    ("quantize", "b", "--data", "fashion-mnist-mini", "-o", "x.onnx"),
    ("train", "b", "--test-only"),
    ("train", "b", "--epochs", "1", "--batch-size", "2000"),
    IN_PYTHON,
)

RUN_VERBS = (
    ("report", "run"),
    ("bench", "run", "-t", "0.1", "--torch", "eager"),
    ("quantize", "run"),
    ("train", "--resume", "run"),
    ("train", "--resume", "run", "--test-only"),
    ("fold", "run/model.st3fx"),
    ("analyze", "run/model.st3fx"),
    ("export", "run/model.st3fx"),
    ("train", "--resume", "run/checkpoints/last.pt", "--test-only"),
)

FILE_VERBS = (
    ("analyze",),
    ("bench", "-t", "0.1"),
    ("analyze", "st3fx:lenet_300_100", "--weights"),
    ("fold", "st3fx:lenet_300_100", "--weights"),
    ("export", "--sparse-kernels"),
)


VERBS = {
    "bundle": BUNDLE_VERBS,
    "run": RUN_VERBS,
    "recipe": (
        ("train", "--config", "r.toml", "--test-only"),
        ("train", "--config", "r.toml", "--batch-size", "2000"),
    ),
}
"""What was made -> commands that open it; files go at the end of those for files."""


@functools.cache
def _bundle() -> Path:
    """A sparse bundle of the model that attacks pretend to have."""
    folder = Path(tempfile.mkdtemp(prefix="st3fx-hostile-"))
    path = write(folder, "net.py", NET)
    recipe = Recipe(str(path), methods.to_dict(methods.create("st3")), inputs=("2x1x8x8",))
    converted = convert_spec(recipe)
    st3fx.Sparsifier(converted.model).set_sparsity(0.5)
    return save_bundle(converted.model, converted.recipe, folder / "b")


def _evil(folder: Path, name: str, text: str = NET) -> Path:
    """A file that does its work, and leaves the mark."""
    code = f"\nimport pathlib\npathlib.Path({str(folder / MARK)!r}).touch()\n"
    return write(folder, name, textwrap.dedent(text) + code)


def _edit(bundle: Path, **recipe: Any) -> None:
    """Change the recipe as somebody who knows how digests are made."""
    path = bundle / "manifest.json"
    body = json.loads(path.read_text())
    body.pop("digest")
    body["recipe"] |= recipe
    text = json.dumps(body, sort_keys=True)
    path.write_text(json.dumps({**body, "digest": hashlib.sha256(text.encode()).hexdigest()}))


def _source(path: Path, relative: str = "nowhere.py", absolute: str = "/nowhere.py") -> Any:
    return {
        "relative": relative,
        "absolute": absolute,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def beside(folder: Path, draw: random.Random) -> str:
    """The file lies in the bundle, or above it."""
    name = draw.choice(("net.py", "../net.py", "sub/net.py", "./sub/../net.py"))
    path = _evil(folder, f"b/{name}")
    _edit(folder / "b", spec=draw.choice(("net.py", "net.py:Tiny")), source=_source(path, name))
    return "bundle"


def absolute(folder: Path, draw: random.Random) -> str:
    """A path from the root, or from the working directory."""
    path = _evil(folder, "far/net.py")
    name = draw.choice((str(path), "far/net.py", f"/proc/self/cwd/far/{path.name}"))
    _edit(folder / "b", spec="net.py", source=_source(path, absolute=name))
    return "bundle"


def linked(folder: Path, draw: random.Random) -> str:
    """Links lead to it."""
    path = _evil(folder, "far/net.py")
    if draw.random() < 0.5:
        (folder / "b" / "net.py").symlink_to(path)
        relative = "net.py"
    else:
        (folder / "b" / "near").symlink_to(folder / "far")
        relative = "near/net.py"
    _edit(folder / "b", spec=relative, source=_source(path, relative))
    return "bundle"


def unsourced(folder: Path, draw: random.Random) -> str:
    """A SPEC without a source, which leads into the working directory or the bundle."""
    _evil(folder, "net.py")
    _evil(folder, "b/net.py")
    _edit(folder / "b", spec=draw.choice(("net.py", "b/net.py", f"{folder}/net.py")), source=None)
    return "bundle"


def module(folder: Path, draw: random.Random) -> str:
    """A module of the working directory, or a package whose own file does it."""
    if draw.random() < 0.5:
        _evil(folder, "evilnet.py")
        _edit(folder / "b", spec="evilnet:Tiny", source=None)
    else:
        _evil(folder, "evil_pkg/__init__.py", "")
        path = write(folder, "evil_pkg/net.py", NET)
        _edit(folder / "b", spec="evil_pkg.net:Tiny", source=_source(path, "../evil_pkg/net.py"))
    return "bundle"


def pythons(folder: Path, draw: random.Random) -> str:
    """Functions of Python itself."""
    _edit(folder / "b", spec=draw.choice(PYTHONS), source=None)
    return "bundle"


def installed(folder: Path, draw: random.Random) -> str:
    """Functions of libraries."""
    _edit(folder / "b", spec=draw.choice(INSTALLED), source=None)
    return "bundle"


def _users(folder: Path, text: str = NET, spec: str = "net.py") -> Path:
    """A file that the user has run, and whose bundle ``b`` is."""
    path = write(folder, "mine/net.py", text)
    load_spec(f"mine/{spec}")
    trust.remember()
    for name in [key for key in sys.modules if key.endswith("_net") or key == "layers"]:
        del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if entry != str(path.parent)]
    _edit(folder / "b", spec=spec, source=_source(path, "../mine/net.py"))
    return path


def changed(folder: Path, draw: random.Random) -> str:
    """A trusted path with other content, by the file, a link, or a folder that is a link."""
    path = _users(folder)
    evil = _evil(folder, "far/net.py")
    if draw.random() < 0.5:
        path.unlink()
        path.symlink_to(evil) if draw.random() < 0.5 else shutil.copy(evil, path)
    else:
        path.parent.rename(folder / "gone")
        path.parent.symlink_to(evil.parent)
    _edit(folder / "b", source=_source(path, "../mine/net.py"))
    return "bundle"


def neighbour(folder: Path, draw: random.Random) -> str:
    """A trusted file imports a module that was exchanged, or that comes before the user's."""
    write(folder, "mine/layers.py", "KIND = 1\n")
    optional = "\n    try:\n        import {}\n    except ImportError:\n        pass\n"
    _users(folder, NET + optional.format("layers") + optional.format("extra"))
    how = draw.randrange(4)
    if how == 0:
        _evil(folder, "mine/layers.py", "KIND = 1\n")
    elif how == 1:
        _evil(folder, "mine/layers/__init__.py", "KIND = 1\n")
    elif how == 2:
        _evil(folder, "mine/extra.py", "")
    else:
        evil = _evil(folder, "far/layers.py", "KIND = 1\n")
        cached = folder / "mine" / "__pycache__" / f"layers.{sys.implementation.cache_tag}.pyc"
        cached.parent.mkdir(exist_ok=True)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(evil), str(cached), invalidation_mode=mode)
    return "bundle"


def deputy(folder: Path, draw: random.Random) -> str:
    """A trusted file has a function that the user has never let st3fx call."""
    mark = str(folder / MARK)
    wipe = f"\n    def wipe():\n        import pathlib\n        pathlib.Path({mark!r}).touch()\n"
    _users(folder, NET + wipe)
    _edit(folder / "b", spec="net.py:wipe")
    return "bundle"


def _run(folder: Path, **settings: Any) -> None:
    """A run's folder, with the bundle as its model and a checkpoint."""
    shutil.move(folder / "b", folder / "run" / "model.st3fx")
    values = {
        "spec": "st3fx:lenet_300_100",
        "output_dir": "run",
        "epochs": 1,
        "batch_size": 2000,
        **settings,
    }
    (folder / "run" / "settings.toml").write_text(to_toml(Settings(**values)))
    (folder / "run" / "metrics.jsonl").write_text("")
    (folder / "run" / "checkpoints").mkdir()
    torch.save({"format": "st3fx-checkpoint"}, folder / "run" / "checkpoints" / "last.pt")


def run_model(folder: Path, draw: random.Random) -> str:
    """A run of a model's file, of a module, of a bundle that names one, or of Python's own."""
    path = _evil(folder, "net.py")
    _evil(folder, "evilnet.py")
    _edit(folder / "b", spec="net.py", source=_source(path, "../../net.py"))
    shutil.copytree(folder / "b", folder / "other")
    spec = draw.choice(("net.py", f"{folder}/net.py", "evilnet:Tiny", "other", *PYTHONS[:3]))
    _run(folder, spec=spec, data=draw.choice(("fashion-mnist-mini", "fashion-mnist-mini")))
    return "run"


def run_data(folder: Path, draw: random.Random) -> str:
    """A run whose data are loaders of its own."""
    _evil(folder, "loaders.py", LOADERS)
    _evil(folder, "run/loaders.py", LOADERS)
    names = ("loaders.py", "run/loaders.py:make_loaders", "loaders:make_loaders", "os:system")
    _edit(folder / "b", spec="st3fx:lenet_300_100", source=None)
    _run(folder, data=draw.choice(names))
    return "run"


def recipe(folder: Path, draw: random.Random) -> str:
    """Settings in a file that the user names, which name code."""
    _evil(folder, "net.py")
    _evil(folder, "loaders.py", LOADERS)
    values = draw.choice(
        (
            {"spec": "net.py"},
            {"spec": "net:Tiny"},
            {"spec": draw.choice(PYTHONS)},
            {"spec": "st3fx:lenet_300_100", "data": "loaders.py"},
            {"spec": "st3fx:lenet_300_100", "data": "loaders:make_loaders"},
        )
    )
    (folder / "r.toml").write_text("".join(f'{key} = "{text}"\n' for key, text in values.items()))
    return "recipe"


class _Touch:
    """Leaves the mark when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (exec, (f"import pathlib; pathlib.Path({self.path!r}).touch()",))


def _pickled(folder: Path, path: Path, draw: random.Random) -> None:
    """A pickle as torch writes it, as it wrote it once, bare, or among weights."""
    touch, how = _Touch(str(folder / MARK)), draw.randrange(4)
    if how == 0:
        path.write_bytes(pickle.dumps(touch))
    else:
        content = touch if how == 1 else {"state_dict": {"1.weight": torch.ones(2)}, "x": touch}
        torch.save(content, path, _use_new_zipfile_serialization=how != 3)


def checkpoint(folder: Path, draw: random.Random) -> str:
    """A run's checkpoint is a pickle, or the weights that it starts from are."""
    _edit(folder / "b", spec="st3fx:lenet_300_100", source=None)
    evil = folder / "evil.pt"
    _pickled(folder, evil, draw)
    _run(folder, **({"weights": str(evil)} if draw.random() < 0.3 else {}))
    for name in ("last.pt", "best.pt"):
        shutil.copy(evil, folder / "run" / "checkpoints" / name)
    return "run"


def weights(folder: Path, draw: random.Random) -> str:
    """A file of weights, a program or a graph is a pickle."""
    name = draw.choice(
        ("w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors", "w.st3w", "w.pt2", "w.onnx", "w")
    )
    _pickled(folder, folder / name, draw)
    return name


def state(folder: Path, draw: random.Random) -> str:
    """The bundle's own weights, or its graph, are a pickle, with the right hash."""
    name = draw.choice(("model.safetensors", "graph.txt"))
    path = folder / "b" / name
    _pickled(folder, path, draw)
    body = json.loads((folder / "b" / "manifest.json").read_text())
    content = path.read_bytes()
    body["files"][name] = {
        "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()
    }  # fmt: skip
    (folder / "b" / "manifest.json").write_text(json.dumps(body))
    _edit(folder / "b")
    return "bundle"


def strangers(folder: Path, draw: random.Random) -> str:
    """Files in the bundle and around it with names that others import."""
    os.chdir(folder)
    for name in ("timm", "onnxscript", "sitecustomize", "usercustomize", "conftest", "layers"):
        for place in ("", "b/"):
            if draw.random() < 0.5:
                _evil(folder, f"{place}{name}.py", "")
    _edit(folder / "b", spec=draw.choice(("st3fx:lenet_300_100", "timm:test_resnet")), source=None)
    return "bundle"


def unknown(folder: Path, draw: random.Random) -> str:
    """A manifest with fields of no version, which might name code."""
    path = _evil(folder, "b/net.py")
    body = json.loads((folder / "b" / "manifest.json").read_text())
    key = draw.choice(("plugins", "custom_ops", "hooks", "code"))
    where = draw.choice((body, body["recipe"], body["plan"]))
    where[key] = [str(path), "net.py"]
    (folder / "b" / "manifest.json").write_text(json.dumps(body))
    _edit(folder / "b")
    return "bundle"


Attack = Callable[[Path, random.Random], str]

ATTACKS: tuple[Attack, ...] = (
    beside, absolute, linked, unsourced, module, pythons, installed, changed, neighbour, deputy,
    run_model, run_data, recipe, checkpoint, weights, state, strangers, unknown,
)  # fmt: skip
