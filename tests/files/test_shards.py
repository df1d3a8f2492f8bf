"""Checkpoints in shards: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from st3fx.errors import SpecError
from st3fx.files.shards import find_checkpoint, open_checkpoint
from st3fx.loading.weights import load_weights

STATE = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.arange(3.0, dtype=torch.float64),
    "b.weight": torch.arange(8, dtype=torch.bfloat16).reshape(2, 4),
    "b.steps": torch.tensor(7),
    "b.none": torch.empty(0, 4),
}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def shards(
    folder: Path, state: dict[str, Tensor] = STATE, changes: dict[str, str] | None = None
) -> Path:
    """A folder with two shards, of a tensor each in turn, and their index."""
    files = {name: (FIRST, SECOND)[i % 2] for i, name in enumerate(state)}
    for file in (FIRST, SECOND):
        own = {name: tensor for name, tensor in state.items() if files[name] == file}
        save_file(own, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files | (changes or {})}
    place = folder / "model.safetensors.index.json"
    place.write_text(json.dumps(index), encoding="utf-8")
    return place


def test_all_of_it_and_some_rows(tmp_path: Path) -> None:
    found = open_checkpoint(shards(tmp_path))
    assert found.has_index
    assert set(found.entries) == set(STATE)
    for name, tensor in STATE.items():
        read = found.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
    assert torch.equal(found.read("a.weight", 1, 2), STATE["a.weight"][1:2])
    assert torch.equal(found.read("b.weight", 1, 9), STATE["b.weight"][1:])
    assert found.nbytes == sum(tensor.nbytes for tensor in STATE.values())
    assert found.shards[FIRST].about == {"format": "pt"}


def test_the_folder_of_an_index(tmp_path: Path) -> None:
    index = shards(tmp_path)
    assert find_checkpoint(tmp_path) == index
    assert find_checkpoint(tmp_path / FIRST) is None  # a file like any other
    assert set(open_checkpoint(tmp_path / FIRST).entries) == {"a.weight", "b.weight", "b.none"}
    index.unlink()
    with pytest.raises(SpecError, match=r"holds .* name the one to read"):
        find_checkpoint(tmp_path)
    (tmp_path / SECOND).rename(tmp_path / "model.safetensors")
    assert find_checkpoint(tmp_path) == tmp_path / "model.safetensors"


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is a folder without an index"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "in/x.safetensors",
        "..",
        "in\\x.safetensors",
        "9" * 300,
    ],
)
def test_a_file_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"which is no file of its own folder"):
        open_checkpoint(shards(tmp_path, changes={"a.weight": name}))


def test_links_are_followed_as_the_cache_of_a_hub_has_them(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    index = shards(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in (FIRST, SECOND, index.name):
        (tmp_path / "snapshot" / file).symlink_to(tmp_path / "blobs" / file)
    found = open_checkpoint(tmp_path / "snapshot")
    assert torch.equal(found.read("a.weight"), STATE["a.weight"])


def _missing(folder: Path) -> None:
    (folder / SECOND).unlink()


def _cut(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-3])


def _twice(folder: Path) -> None:
    save_file({"a.weight": torch.ones(1), "a.bias": torch.ones(1), "b.steps": torch.ones(1)},
              folder / SECOND)  # fmt: skip


def _more(folder: Path) -> None:
    save_file({"a.bias": torch.ones(1), "b.steps": torch.ones(1), "c": torch.ones(1)},
              folder / SECOND)  # fmt: skip


def _fewer(folder: Path) -> None:
    save_file({"a.bias": torch.ones(1)}, folder / SECOND)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_missing, rf"names {SECOND}, which is missing beside it"),
        (_cut, rf"{SECOND} is not a safetensors file, or is broken"),
        (_twice, rf"a\.weight is in both {FIRST} and {SECOND}"),
        (_more, r"lacks c, which is in its files"),
        (_fewer, r"b\.steps is not in the file that it says"),
    ],
)
def test_damage(tmp_path: Path, damage: Any, said: str) -> None:
    index = shards(tmp_path)
    damage(tmp_path)
    with pytest.raises(SpecError, match=said) as caught:
        open_checkpoint(index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "expected str"),
        ('{"weight_map": {"a": "x.bin"}}', "no file of safetensors"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    place = tmp_path / "model.safetensors.index.json"
    place.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=said):
        open_checkpoint(place)


def test_a_shard_that_becomes_shorter(tmp_path: Path) -> None:
    found = open_checkpoint(shards(tmp_path))
    (tmp_path / FIRST).write_bytes((tmp_path / FIRST).read_bytes()[:-4])
    last = found.shards[FIRST].entries[-1].name
    with pytest.raises(SpecError, match=r"ends within .*: save the checkpoint again"):
        found.read(last)


class Tied(nn.Module):
    """Two names for one weight, and a buffer that no checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_loaded_into_a_model(tmp_path: Path, device: str, prefix: str) -> None:
    with torch.device(device):
        model = Tied()
    torch.manual_seed(0)
    given = {k: v.clone() for k, v in Tied().state_dict().items() if k != "head.weight"}
    given["embed.weight"] = given["embed.weight"].double()
    load_weights(model, shards(tmp_path, {prefix + k: v for k, v in given.items()}).parent)
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.dtype == torch.float32  # as the model has it
    assert torch.equal(model.embed.weight, given["embed.weight"].float())
    assert torch.equal(model.state_dict()["norm.running_var"], given["norm.running_var"])


def test_what_does_not_fit(tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in Tied().state_dict().items() if k != "head.weight"}
    del state["norm.bias"]
    state |= {"more": torch.ones(1), "embed.weight": torch.ones(5, 4)}
    with pytest.raises(SpecError) as caught:
        load_weights(Tied(), shards(tmp_path, state))
    assert str(caught.value).endswith(
        "do not fit the model: missing norm.bias; unexpected more; embed.weight is (5, 4) in the "
        "file and (6, 4) in the model, head.weight is (5, 4) in the file and (6, 4) in the model"
    )
