from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import st3fx
from st3fx.errors import SpecError
from st3fx.export.weights import write_weights
from st3fx.files.seal import write_sealed
from st3fx.loading.weights import load_weights


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def _same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_checkpoints(tmp_path: Path, wrap: str | None, prefix: str) -> None:
    trained, fresh = _net(), _net()
    state: dict[str, Any] = {prefix + key: value for key, value in trained.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert _same(trained, fresh)


def test_a_packed_checkpoint_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(_net().state_dict(), path)
    with zipfile.ZipFile(path) as given:
        parts = {name: given.read(name) for name in given.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in parts.items():
            made.writestr(name, bytes(1 << 24) if "/data/" in name else data)
    with pytest.raises(SpecError, match=r"is packed, as torch\.save writes none"):
        load_weights(_net(), path)


def test_safetensors(tmp_path: Path) -> None:
    trained, fresh = _net(), _net()
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    load_weights(fresh, tmp_path / "w.safetensors")
    assert _same(trained, fresh)


def test_compact_files(tmp_path: Path) -> None:
    trained, fresh = Tied(), Tied()
    st3fx.save_compact(trained.state_dict(), tmp_path / "w.st3w")
    load_weights(fresh, tmp_path / "w.st3w")
    assert _same(trained, fresh)
    (tmp_path / "w.st3w").write_bytes(b"ST3W")
    with pytest.raises(SpecError, match="is not a compact weight file"):
        load_weights(fresh, tmp_path / "w.st3w")


def test_safetensors_without_the_tied_name(tmp_path: Path) -> None:
    trained, fresh = Tied(), Tied()
    save_file({"embed.weight": trained.embed.weight.detach()}, tmp_path / "w.safetensors")
    load_weights(fresh, tmp_path / "w.safetensors")
    assert _same(trained, fresh)


def test_a_model_whose_child_is_called_module(tmp_path: Path) -> None:
    trained, fresh = nn.ModuleDict({"module": _net()}), nn.ModuleDict({"module": _net()})
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    assert _same(trained, fresh)


def test_does_not_fit(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(2, 2)).state_dict()
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SpecError) as caught:
        load_weights(_net(), tmp_path / "w.pt")
    assert str(caught.value) == (
        f"weights {tmp_path / 'w.pt'} do not fit the model: missing 1.weight, 1.bias, "
        "1.running_mean and 2 more; unexpected 2.weight, 2.bias; 0.weight is (5, 3) in the file "
        "and (4, 3) in the model, 0.bias is (5,) in the file and (4,) in the model"
    )


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x02}q\x00"])
def test_broken(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match="or is broken") as caught:
        load_weights(_net(), tmp_path / name)
    assert "\n" not in str(caught.value)


def test_truncated(tmp_path: Path) -> None:
    torch.save(_net().state_dict(), tmp_path / "w.pt")
    save_file(_net().state_dict(), tmp_path / "w.safetensors")
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(SpecError, match="or is broken"):
            load_weights(_net(), file)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_what_we_wrote_has_a_digest(tmp_path: Path, name: str) -> None:
    """A bit of a weight that has changed is never loaded; nor is any other of the file."""
    net, file = _net(), tmp_path / name
    if file.suffix == ".pt":
        with file.open("wb") as opened:
            write_sealed(opened, lambda to: torch.save(net.state_dict(), to))
    else:
        write_weights(net.state_dict(), file, compact=False)
    other = _net()
    load_weights(other, file)
    assert _same(net, other)
    content = file.read_bytes()
    place = content.index(net.state_dict()["0.weight"].numpy().tobytes()) + 5
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(SpecError, match=rf"{name} .* was damaged or edited after it was written"):
        load_weights(other, file)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no weight file"):
        load_weights(_net(), tmp_path / "w.pt")
    with pytest.raises(SpecError, match="a folder without an index or a file of safetensors"):
        load_weights(_net(), tmp_path)


def test_a_pickled_module_is_not_run(tmp_path: Path) -> None:
    torch.save(_net(), tmp_path / "w.pt")
    with pytest.raises(SpecError, match="holds more than weights, which is not loaded") as caught:
        load_weights(_net(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [({"epoch": 3}, "a dict with 'epoch'"), ([1, 2], "a list"), ({}, "a dict with none")],
)
def test_no_state_dict(tmp_path: Path, content: Any, found: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(SpecError, match=f"holds no state dict but {found}: save"):
        load_weights(_net(), tmp_path / "w.pt")
