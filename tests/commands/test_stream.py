"""Folding a checkpoint that stays in its files gives what folding in memory gives, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import st3fx
from st3fx.cli import main
from st3fx.files.shards import Checkpoint
from st3fx.sparsity import stored
from tests.files.test_shards import shards

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width=24, inner=40):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))

class Tiny(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(30, 24)
        self.mix = nn.Conv1d(24, 24, 3, padding=1, groups=2)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(24, 30, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.mix(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

def example_inputs():
    return torch.zeros(1, 5, dtype=torch.long)

def build_model():
    with torch.device("meta"):
        return Tiny()

def tied():
    with torch.device("meta"):
        return Tiny(tied=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with model.py in it; weights are read a few at a time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(stored, "PIECE", 70)
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    return tmp_path


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def _done(*args: str) -> Result:
    result = _run(*args)
    assert result.exit_code == 0, result.output
    return result


def _class() -> Any:
    scope: dict[str, Any] = {"__name__": "made"}
    exec(compile(MODEL, "model.py", "exec"), scope)
    return scope["Tiny"]


def _state(dtype: torch.dtype = torch.float32, tied: bool = False, ties: bool = False) -> Any:
    torch.manual_seed(0)
    model: nn.Module = _class()(tied).to(dtype)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if ties:  # few magnitudes, each many times
        state = {k: (v * 40).round() / 40 if v.dim() > 1 else v for k, v in state.items()}
    if tied:
        del state["head.weight"]
    return state


def _in_memory(state: dict[str, Tensor], method: Any, sparsity: float, **how: Any) -> Any:
    """What the library gives where the weights are in memory, in the dtype that they have."""
    tied = how.pop("tied", False)
    model = _class()(tied).to(state["embed.weight"].dtype)
    model.load_state_dict(state, strict=not tied)
    ids = torch.zeros(1, 5, dtype=torch.long)
    converted, sparsifier = st3fx.convert(model, ids, method, verify=False, **how)
    sparsifier.set_sparsity(sparsity)
    return st3fx.fold(converted).state_dict()


def _read(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    for file in sorted(set(index["weight_map"].values())):
        own = load_file(folder / file)
        assert all(index["weight_map"][name] == file for name in own)
        found |= own
    assert set(found) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    return found


def _same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
        if tensor.is_floating_point():
            zero = found[name] == 0
            assert not found[name][zero].signbit().any(), name


CASES: dict[str, tuple[list[str], Any]] = {
    "st3": ([], st3fx.ST3()),
    "sigma": (["--method", "st3-sigma"], st3fx.ST3(normalize="sigma")),
    "gmp": (["--method", "gmp"], st3fx.GMP()),
    "feather": (["--method", "feather"], st3fx.Feather()),
    "macs": (["--method-option", "budget=macs"], st3fx.ST3(budget="macs")),
    "block": (["--granularity", "block:4"], st3fx.ST3(granularity=st3fx.Block(4))),
    "nm": (["--granularity", "nm:2:4"], st3fx.ST3(granularity=st3fx.NM(2, 4))),
    "channels": (["--granularity", "channels"], st3fx.ST3(granularity=st3fx.Channels())),
    "own": (["--sparsity-of", "layers.1.*=0.95"],
            st3fx.ST3(sparsity_of={"layers.1.*": 0.95})),
}  # fmt: skip


SEEN = [(case, torch.float32, False) for case in CASES]
SEEN += [(case, torch.bfloat16, True) for case in CASES]
SEEN += [(case, torch.float32, True) for case in ("st3", "sigma", "block", "nm")]
SEEN += [("st3", torch.float16, False), ("st3", torch.float64, False)]


@pytest.mark.parametrize(("case", "dtype", "ties"), SEEN)
def test_equal_to_a_fold_in_memory(folder: Path, case: str, dtype: torch.dtype, ties: bool) -> None:
    options, method = CASES[case]
    state = _state(dtype, ties=ties)
    (folder / "given").mkdir()
    shards(folder / "given", state)
    sparsity = 0.5 if case == "nm" else 0.7
    _done("convert", "model.py", "-q", *options)
    _done("fold", "model.st3fx", "--weights", "given", "--sparsity", str(sparsity), "-o", "out")
    _same(_read(folder / "out"), _in_memory(state, method, sparsity))


def test_zeros_that_the_weights_came_with(folder: Path) -> None:
    state = _state()
    for weight in (state["layers.0.up.weight"], state["layers.1.down.weight"]):
        weight[weight.abs() < weight.abs().quantile(0.6)] = 0.0
    (folder / "given").mkdir()
    shards(folder / "given", state)
    _done("convert", "model.py", "-q")
    for sparsity in (0.1, 0.8):  # below their share, and above
        _done("fold", "model.st3fx", "--weights", "given", "--sparsity", str(sparsity),
              "-o", "out", "--force")  # fmt: skip
        _same(_read(folder / "out"), _in_memory(state, st3fx.ST3(), sparsity))


def test_a_tied_projection(folder: Path) -> None:
    state = _state(tied=True)
    (folder / "given").mkdir()
    shards(folder / "given", state)
    for flags, how in (([], {}), (["--include-tied"], {"include_tied": True})):
        _done("convert", "model.py:tied", "-q", *flags, "-o", "b", "--force")
        _done("fold", "b", "--weights", "given", "--sparsity", "0.6", "-o", "out", "--force")
        found = _read(folder / "out")
        wanted = _in_memory(state, st3fx.ST3(), 0.6, tied=True, **how)
        if not flags:
            assert torch.equal(wanted.pop("head.weight"), wanted["embed.weight"])
        _same(found, wanted)


SHARED = """
import torch
from torch import nn

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.end = (nn.Linear(12, 12, bias=False) for _ in range(3))
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.end(torch.relu(self.two(torch.relu(self.one(x)))))

def build_model():
    with torch.device("meta"):
        return Shared()

def example_inputs():
    return torch.zeros(1, 12)
"""


def test_copies_of_a_tied_weight_in_several_shards(folder: Path) -> None:
    """Each is folded, or the dense one that is loaded last would be the weight of both layers."""
    scope: dict[str, Any] = {"__name__": "made"}
    exec(compile(SHARED, "shared.py", "exec"), scope)
    torch.manual_seed(0)
    model: nn.Module = scope["Shared"]()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    (folder / "shared.py").write_text(SHARED, encoding="utf-8")
    (folder / "given").mkdir()
    shards(folder / "given", state)
    _done("convert", "shared.py", "-q")
    call = ("shared.st3fx", "--weights", "given", "--sparsity", "0.6", "-o", "out")
    _done("fold", *call)
    converted, sparsifier = st3fx.convert(model, torch.zeros(1, 12), verify=False)
    sparsifier.set_sparsity(0.6)
    wanted = st3fx.fold(converted).state_dict()
    _same(_read(folder / "out"), wanted)
    assert torch.equal(wanted["one.weight"], wanted["two.weight"])
    state["two.weight"][0, 0] += 1
    shards(folder / "given", state)
    _fails(folder, r"one\.weight and two\.weight are one tensor in the model, and differ", *call,
           "--force")  # fmt: skip


TRAINED: dict[str, Any] = {
    "st3": st3fx.ST3(0.7), "dst": st3fx.DST(1e-2), "str": st3fx.STR(), "rigl": st3fx.RigL(0.7),
    "probmask": st3fx.ProbMask(0.7), "lrr": st3fx.LRR(0.7),
}  # fmt: skip


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_what_a_training_has_left(folder: Path, name: str, frozen: bool) -> None:
    """Thresholds, masks and probabilities lie in the shards, as a state dict has them."""
    torch.manual_seed(0)
    model = _class()()
    ids = torch.randint(0, 30, (2, 5))
    converted, sparsifier = st3fx.convert(model, ids, TRAINED[name], total_steps=4, verify=False)
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.5)
    for _ in range(4):
        loss = converted(ids).square().mean() + sparsifier.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.step()
    if name in ("dst", "str"):  # thresholds of different channels
        with torch.no_grad():
            for threshold in sparsifier.threshold_parameters():
                threshold.copy_(torch.linspace(0.01, 0.1, threshold.numel()).view_as(threshold))
                if name == "str":
                    threshold.fill_(-3.0)
    if frozen and name != "rigl":
        sparsifier.freeze()
    converted.eval()
    (folder / "given").mkdir()
    shards(folder / "given", {k: v.clone() for k, v in converted.state_dict().items()})
    _done("convert", "model.py", "-q", "--method", name, "--total-steps", "4",
          *(["--sparsity", "0.7"] if name not in ("dst", "str") else []))  # fmt: skip
    _done("fold", "model.st3fx", "--weights", "given", "-o", "out")
    wanted = st3fx.fold(converted).state_dict()
    _same(_read(folder / "out"), {key: value.detach() for key, value in wanted.items()})


def test_the_files_are_as_they_were_laid_out(folder: Path) -> None:
    (folder / "given").mkdir()
    shards(folder / "given", _state())
    _done("convert", "model.py", "-q")
    result = _done("fold", "model.st3fx", "--weights", "given/model.safetensors.index.json",
                   "--sparsity", "0.5", "-o", "out", "--json")  # fmt: skip
    names = sorted(path.name for path in (folder / "given").iterdir())
    assert sorted(path.name for path in (folder / "out").iterdir()) == names
    for path in (folder / "given").glob("*.safetensors"):
        assert set(load_file(path)) == set(load_file(folder / "out" / path.name))
    said = json.loads(result.stdout)
    assert (said["path"], said["sparsity"]) == ("out", 0.5)


def test_one_file(folder: Path) -> None:
    state = _state()
    save_file(state, folder / "w.safetensors")
    _done("convert", "model.py", "-q")
    _done("fold", "model.st3fx", "--weights", "w.safetensors", "--sparsity", "0.5")
    _same(load_file(folder / "model.safetensors"), _in_memory(state, st3fx.ST3(), 0.5))


def test_pieces_are_small_and_few(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at a time, and how much of it is alive at once, does not grow with a weight."""
    monkeypatch.setattr(stored, "PIECE", 1 << 10)
    monkeypatch.setattr("st3fx.export.stream._AT_A_TIME", 1 << 10)
    (folder / "given").mkdir()
    state = {"weight": torch.randn(4096, 64), "bias": torch.randn(4096)}
    shards(folder / "given", state)
    (folder / "one.py").write_text(
        "import torch\ndef build_model():\n    with torch.device('meta'):\n        return "
        "torch.nn.Linear(64, 4096)\ndef example_inputs():\n    return torch.zeros(1, 64)\n",
        encoding="utf-8",
    )
    _done("convert", "one.py", "-q")
    alive: set[int] = set()
    sizes, most = [], [0]
    read = Checkpoint.read

    def watched(self: Checkpoint, *args: Any) -> Tensor:
        found = read(self, *args)
        sizes.append(found.numel())
        number = len(sizes)
        alive.add(number)
        weakref.finalize(found, alive.discard, number)
        most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr(Checkpoint, "read", watched)
    _done("fold", "one.st3fx", "--weights", "given", "--sparsity", "0.9", "-o", "out")
    assert len(sizes) >= 3 * 4096 * 64 // 1024
    assert max(sizes) == 1024
    assert most[0] <= 2
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    model = nn.Linear(64, 4096)
    model.load_state_dict(state)
    converted, sparsifier = st3fx.convert(model, torch.zeros(1, 64), verify=False)
    sparsifier.set_sparsity(0.9)
    _same(_read(folder / "out"), st3fx.fold(converted).state_dict())


WIDE = """
import torch
from torch import nn

def build_model():
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(3600, 3600, bias=False) for _ in range(8))).bfloat16()

def example_inputs():
    return torch.zeros(1, 3600, dtype=torch.bfloat16)
"""


def _peak(name: str) -> int:
    """Bytes of memory that this process has (``VmRSS``), or had at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system tells no peak that can be reset")
def test_memory_is_one_shard_and_one_layer_at_most(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 207 MB in eight shards; inspecting them, too."""
    monkeypatch.undo()  # pieces of the usual size
    monkeypatch.chdir(folder)
    monkeypatch.setattr("st3fx.commands.stream._SAMPLE", 1 << 20)
    given = folder / "given"
    given.mkdir()
    shards(given, _state())
    _done("convert", "model.py", "-q")
    small = ("fold", "model.st3fx", "--weights", "given", "--sparsity", "0.5", "-o", "small")
    _done(*small)  # what is imported stays
    (folder / "wide.py").write_text(WIDE, encoding="utf-8")
    _done("convert", "wide.py", "-q")
    torch.manual_seed(0)
    block = torch.randn(1 << 20).to(torch.bfloat16)
    names = [f"{i}.weight" for i in range(8)]
    for i, name in enumerate(names):
        weight = block.repeat(13)[i : i + 3600 * 3600].reshape(3600, 3600).clone()
        save_file({name: weight}, given / f"{i}.safetensors")
    layer = weight.nbytes
    del weight
    files = {name: f"{i}.safetensors" for i, name in enumerate(names)}
    place = given / "model.safetensors.index.json"
    place.write_text(json.dumps({"weight_map": files}), encoding="utf-8")
    for call in (("fold", "wide.st3fx", "--weights", "given", "--sparsity", "0.5", "-o", "out"),
                 ("inspect", "given")):  # fmt: skip
        stored.give_back()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is now
        before = _peak("VmRSS")
        _done(*call)
        assert _peak("VmHWM") - before < 2 * layer
    assert sum(map(os.path.getsize, (folder / "out").iterdir())) > 8 * layer


def _fails(folder: Path, said: str, *args: str) -> None:
    """One line, exit code 2, and nothing half-written."""
    before = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    result = _run("fold", *args)
    assert result.exit_code == 2, result.output
    assert re.search(said, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    after = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


def test_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = _state()
    (folder / "given").mkdir()
    index = shards(folder / "given", state)
    _done("convert", "model.py", "-q")
    _done("convert", "model.py", "-q", "-o", "learned", "--method", "dst")
    given = ("model.st3fx", "--weights", "given")
    _fails(
        folder, "has no weights: st3fx fold .* --weights INDEX", "model.st3fx", "--sparsity", "0.5"
    )
    _fails(folder, "is of no sparse training: prune it now by --sparsity", *given)
    _fails(folder, "dst finds in training what it prunes", "learned", *given[1:])
    _fails(folder, "sparsity 1", *given, "--sparsity", "1.5")
    _fails(folder, "is where the weights are read from", *given, "--sparsity", "0.5", "-o", "given",
           "--force")  # fmt: skip
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    _fails(folder, "holds other things than folded weights", *given, "--sparsity", "0.5", "-o",
           "mine", "--force")  # fmt: skip
    with monkeypatch.context() as patch:
        free = types.SimpleNamespace(free=10)
        patch.setattr(shutil, "disk_usage", lambda _: free)
        _fails(folder, r"need 0\.00 GB, and 0\.00 GB are free", *given, "--sparsity", "0.5")
    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("st3fx.export.stream.os.fsync", full)
        _fails(folder, "o space left on", *given, "--sparsity", "0.5")
    save_file(state | {"more": torch.ones(1)}, folder / "w.safetensors")
    _fails(folder, "do not fit the model: unexpected more", "model.st3fx", "--weights",
           "w.safetensors", "--sparsity", "0.5")  # fmt: skip
    state["head.weight"][0, 0] = float("nan")
    shards(folder / "given", state)
    _fails(folder, r"some weights are NaN in head\.weight", *given, "--sparsity", "0.5")
    index.unlink()
    _fails(folder, "name the one to read", *given, "--sparsity", "0.5")


def test_folded_shards_are_replaced_by_force_alone(folder: Path) -> None:
    (folder / "given").mkdir()
    shards(folder / "given", _state())
    _done("convert", "model.py", "-q")
    call = ("fold", "model.st3fx", "--weights", "given", "-o", "out", "--sparsity")
    _done(*call, "0.5")
    (folder / "out" / "config.json").write_text("{}", encoding="utf-8")
    _fails(folder, "out exists: choose another folder, or replace it by --force", *call[1:], "0.9")
    _done(*call, "0.9", "--force")
    assert (folder / "out" / "config.json").is_file()  # the user's own
    weight = _read(folder / "out")["layers.0.up.weight"]
    assert (weight == 0).float().mean() > 0.8


def test_a_bundle_without_weights(folder: Path) -> None:
    result = _done("convert", "model.py")
    end = "next: st3fx fold model.st3fx --weights model.safetensors.index.json --sparsity 0.9\n"
    assert result.stdout.endswith(end)
    model = st3fx.load_bundle("model.st3fx", trust=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert "has no weights" in _done("inspect", "model.st3fx").stdout
    counted = json.loads(_done("analyze", "model.st3fx", "--trust", "--json").stdout)
    dense = st3fx.count_flops(_class()(), torch.zeros(1, 5, dtype=torch.long))
    assert counted["dense_macs"] == counted["sparse_macs"] == dense.dense_macs
    assert counted["has_values"] is False
    said = _done("analyze", "model.py", "--no-layers").stdout
    assert "not known: the model is on the meta device" in said
    assert "without the zeros" not in said
    for command in ("export", "report", "train"):
        result = _run(command, "model.st3fx")
        assert result.exit_code == 2, command
        assert "was converted on the meta device and has no weights" in result.stderr
    manifest = json.loads((folder / "model.st3fx" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format_version"] == 2  # what an older version could not read


def test_weights_into_a_model_on_the_meta_device(folder: Path) -> None:
    state = _state()
    (folder / "given").mkdir()
    shards(folder / "given", state)
    _done("convert", "model.py", "--weights", "given", "-q")
    found = st3fx.load_bundle("model.st3fx", trust=True).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    _done("fold", "model.st3fx", "--sparsity", "0.6")
    _done("fold", "model.py", "--weights", "given", "--sparsity", "0.6", "-o", "two.safetensors")
    wanted = _in_memory(state, st3fx.ST3(), 0.6)
    _same(load_file(folder / "model.safetensors"), wanted)
    _same(load_file(folder / "two.safetensors"), wanted)
    counted = _done("analyze", "model.py", "--weights", "two.safetensors", "--json")
    assert json.loads(counted.stdout)["sparse_macs"] < json.loads(counted.stdout)["dense_macs"]
