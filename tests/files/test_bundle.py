from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from st3fx.errors import BundleError, StrangeFileWarning
from st3fx.files import atomic
from st3fx.files.bundle import Bundle, check_target, read_bundle, write_bundle
from st3fx.files.manifest import FORMAT_VERSION, Recipe, Source
from st3fx.files.tensor_file import load_state, save_state
from st3fx.plan.sites import IslandInfo, Layout, OpaqueModule, Site, SkippedSite, SparsityPlan

SITE = Site("a.weight", ("a.weight",), (4, 3), "linear", Layout(), ("a",))
PLAN = SparsityPlan(
    sites=(SITE,),
    skipped=(SkippedSite("b.weight", (2, 2), "matmul", "excluded"),),
    islands=(IslandInfo("", ("train", "eval"), 9),),
    opaque=(OpaqueModule("c", "Odd", "a loop over data"),),
    target=0.9,
    total_parameters=16,
)
RECIPE = Recipe("torchvision:x", {"name": "st3", "sparsity": 0.9}, inputs=("1x3",), exclude=("b*",))
STATE = {"a.weight": torch.arange(12.0).reshape(4, 3), "n": torch.tensor(3)}


def _write(folder: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "recipe": RECIPE,
        "plan": PLAN,
        "state_dict": STATE,
        "graph_text": "σ(x)\n",
    }
    return write_bundle(folder, **{**given, **changes})


def _same(bundle: Bundle, state: dict[str, torch.Tensor]) -> bool:
    return bundle.state_dict.keys() == state.keys() and all(
        torch.equal(bundle.state_dict[key], value) for key, value in state.items()
    )


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip(tmp_path: Path) -> None:
    target = _write(tmp_path / "deep" / "b")
    bundle = read_bundle(target)
    assert bundle.manifest.recipe == RECIPE
    assert bundle.manifest.plan == PLAN
    assert bundle.manifest.versions["torch"] == torch.__version__.partition("+")[0]
    assert bundle.graph_text == "σ(x)\n"
    assert _same(bundle, STATE)
    assert sorted(_snapshot(tmp_path / "deep")) == [
        "b/graph.txt",
        "b/manifest.json",
        "b/model.safetensors",
    ]
    assert len({path.stat().st_mode for path in target.iterdir()}) == 1


def test_example_inputs_marker(tmp_path: Path) -> None:
    target = _write(tmp_path / "b", recipe=Recipe("model.py", {"name": "st3"}))
    data = json.loads((target / "manifest.json").read_text())
    assert data["recipe"]["inputs"] == "example_inputs()"
    assert read_bundle(target).manifest.recipe.inputs is None


def test_state_of_every_kind(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "first": whole,
        "tied": whole,
        "transposed": whole.t(),
        "part": whole[1:3],
        "row": whole[0],
        "scalar": torch.tensor(True),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "empty2": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(3)),
    }
    aliases = save_state(state, tmp_path / "s")
    assert aliases == {"tied": "first"}
    loaded = load_state(tmp_path / "s", aliases)
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key
        assert loaded[key].dtype == value.dtype
    assert loaded["tied"] is loaded["first"]


@pytest.mark.parametrize("value", [{"a": 1}, torch.eye(2).to_sparse()])
def test_state_that_cannot_be_stored(tmp_path: Path, value: Any) -> None:
    with pytest.raises(BundleError, match="cannot store odd: not a dense tensor with values"):
        _write(tmp_path / "b", state_dict={"odd": value, **STATE})
    assert list(tmp_path.iterdir()) == []


def test_existing_folder(tmp_path: Path) -> None:
    target = _write(tmp_path / "b")
    before = _snapshot(tmp_path)
    with pytest.raises(BundleError, match=r"b exists: choose another folder, or .* --force"):
        _write(target, state_dict={"n": torch.tensor(4)})
    assert _snapshot(tmp_path) == before
    _write(target, state_dict={"n": torch.tensor(4)}, force=True)
    assert _same(read_bundle(target), {"n": torch.tensor(4)})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_force_never_replaces_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    before = _snapshot(tmp_path)
    for name in ("notes", "file"):
        with pytest.raises(BundleError, match="is not a bundle, and --force replaces only bundles"):
            _write(tmp_path / name, force=True)
    assert _snapshot(tmp_path) == before


def test_force_replaces_a_damaged_bundle_and_an_empty_folder(tmp_path: Path) -> None:
    target = _write(tmp_path / "b")
    (target / "manifest.json").write_text("{")
    _write(target, force=True)
    assert _same(read_bundle(target), STATE)
    (tmp_path / "empty").mkdir()
    assert _same(read_bundle(_write(tmp_path / "empty", force=True)), STATE)
    # More files than the writer's own: the manifest says that it is a bundle all the same.
    (target / "model.onnx").write_text("x")
    assert check_target(target, force=True) == target


def test_a_link_is_followed(tmp_path: Path) -> None:
    target = _write(tmp_path / "b")
    (tmp_path / "latest").symlink_to(target)
    _write(tmp_path / "latest", state_dict={"n": torch.tensor(4)}, force=True)
    assert (tmp_path / "latest").is_symlink()
    assert _same(read_bundle(target), {"n": torch.tensor(4)})


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_rename_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Where two folders cannot be exchanged: the journal's rename, the old one's, the new one's."""
    target = _write(tmp_path / "b")
    before, calls, rename = _snapshot(tmp_path), 0, Path.rename

    def fail(self: Path, other: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(BundleError, match=r"cannot write .*b: No space left on device"):
        _write(target, state_dict={"n": torch.tensor(4)}, force=True)
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize("exchanged", [True, False])
def test_what_the_user_put_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    if not exchanged:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    target = _write(tmp_path / "b")
    (target / "notes.txt").write_text("dear")
    (target / "sub" / "deep").mkdir(parents=True)
    (target / "sub" / "deep" / "x").write_text("diary")
    (target / "link").symlink_to("nowhere")
    os.mkfifo(target / "pipe")
    _write(target, state_dict={"n": torch.tensor(4)}, force=True)
    (target / "README.md").write_text("what this is")
    with pytest.warns(StrangeFileWarning, match=r"b holds 'link', 'pipe', 'sub', which are no fil"):
        assert _same(read_bundle(target), {"n": torch.tensor(4)})
    assert (target / "notes.txt").read_text() == "dear"
    assert (target / "sub" / "deep" / "x").read_text() == "diary"
    assert (target / "link").readlink() == Path("nowhere")
    assert (target / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_with_weights_of_others_is_no_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    save_file({"n": torch.tensor(4)}, folder / "model.safetensors")
    with pytest.raises(BundleError, match="is not a bundle, and --force replaces only bundles"):
        _write(folder, force=True)


def test_a_parent_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write"):
        _write(tmp_path / "file" / "b")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle: no such folder"):
        read_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest.json"):
        read_bundle(tmp_path)
    _write(tmp_path / "model.st3fx")
    with pytest.raises(BundleError, match=r"is no bundle but has one: give .*/model\.st3fx"):
        read_bundle(tmp_path)  # the folder of a training


@pytest.mark.parametrize("name", ["model.safetensors", "graph.txt"])
def test_damaged_file(tmp_path: Path, name: str) -> None:
    file = _write(tmp_path / "b") / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=rf"truncated: .*{name} has \d+ of \d+ bytes"):
        read_bundle(tmp_path / "b")
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(BundleError, match=rf"{name} was edited after it was written"):
        read_bundle(tmp_path / "b")
    file.write_bytes(content + b"x")
    with pytest.raises(BundleError, match=rf"{name} was edited after it was written"):
        read_bundle(tmp_path / "b")
    file.unlink()
    with pytest.raises(BundleError, match=rf"the bundle is truncated: .*{name} is missing"):
        read_bundle(tmp_path / "b")


def _edit_manifest(target: Path, *, signed: bool = False, **changes: Any) -> None:
    """Change the manifest; ``signed`` as somebody who knows its hash would."""
    data = json.loads((target / "manifest.json").read_text()) | changes
    if signed:
        data.pop("digest")
        text = json.dumps(data, sort_keys=True)
        data["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (target / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aliases": {"x": "n"}}, "was damaged or edited after it was written"),
        ({"format": "other"}, "is not the manifest of a st3fx bundle"),
        ({"format_version": FORMAT_VERSION + 1}, "has format 3, written by st3fx .* upgrade st3fx"),
        ({"format_version": "2", "versions": 3}, "has format '2', written by st3fx "),
        ({"signed": True, "recipe": {}}, "recipe: it is missing required field spec"),
        ({"signed": True, "aliases": {"x": 1}}, r"aliases\[...\]: expected str, got int: convert "),
        ({"signed": True, "more": 1}, "manifest.json: more: no such name: convert the model again"),
        ({"signed": True, "plan": []}, "plan: expected object, got array"),
        ({"signed": True, "files": {}}, r"does not list model\.safetensors"),
        ({"signed": True, "aliases": {"x": "y"}}, "lacks y"),
    ],
)
def test_edited_manifest(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    target = _write(tmp_path / "b")
    _edit_manifest(target, **changes)
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_manifest_that_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    target = _write(tmp_path / "b")
    (target / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="manifest"):
        read_bundle(target)


def test_source(tmp_path: Path) -> None:
    model = tmp_path / "project" / "model.py"
    model.parent.mkdir()
    model.write_text("x = 1\n")
    source = Source(model, hashlib.sha256(b"x = 1\n").hexdigest())
    recipe = Recipe("model.py", {"name": "st3"}, source=source)
    target = _write(model.parent / "b", recipe=recipe)
    read_bundle(target).check_source()

    # A project that moves as a whole finds its file beside the bundle.
    moved = tmp_path / "moved"
    model.parent.rename(moved)
    bundle = read_bundle(moved / "b")
    bundle.check_source()
    assert bundle.manifest.recipe.source == Source(moved / "model.py", source.sha256)

    (moved / "model.py").write_text("x = 2\n")
    with pytest.raises(BundleError, match=r"model.py was changed since .*b was made from it"):
        bundle.check_source()
    (moved / "model.py").unlink()
    with pytest.raises(BundleError, match=r"was made from .*model.py, which is missing"):
        bundle.check_source()


def test_a_bundle_that_moves_alone_finds_its_source(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text("x = 1\n")
    source = Source(model, hashlib.sha256(b"x = 1\n").hexdigest())
    target = _write(tmp_path / "b", recipe=Recipe("model.py", {"name": "st3"}, source=source))
    (tmp_path / "far" / "away").mkdir(parents=True)
    target.rename(tmp_path / "far" / "away" / "b")
    read_bundle(tmp_path / "far" / "away" / "b").check_source()
    # Another file where the relative path leads now is not taken for it.
    (tmp_path / "far" / "model.py").write_text("x = 2\n")
    (tmp_path / "far" / "away" / "b").rename(tmp_path / "far" / "b")
    read_bundle(tmp_path / "far" / "b").check_source()
