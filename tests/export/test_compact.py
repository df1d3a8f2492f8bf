from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import st3fx
from st3fx.errors import ExportError
from st3fx.files import compact
from st3fx.files.compact import DTYPES, load_compact, save_compact


def _sparse(*shape: int, share: float = 0.9) -> Tensor:
    values = torch.randn(*shape)
    return torch.where(torch.rand(*shape) < share, torch.zeros(()), values)


def _bits(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _round_trip(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    size = save_compact(state, path)
    assert size == path.stat().st_size
    loaded = load_compact(path)
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert _bits(loaded[name]) == _bits(tensor), name
    return loaded


def test_five_times_smaller_than_dense_at_90_percent(tmp_path: Path) -> None:
    state = {"w": _sparse(256, 1000), "b": torch.randn(256)}
    _round_trip(state, tmp_path / "w.st3w")
    dense = sum(tensor.nbytes for tensor in state.values())
    # A bit and a tenth of 32 bits: 32 / 4.2.
    assert dense / (tmp_path / "w.st3w").stat().st_size == pytest.approx(7.6, abs=0.2)


def test_every_bit_comes_back(tmp_path: Path) -> None:
    odd = torch.zeros(64)
    odd[[1, 2, 3, 63]] = torch.tensor([-1e-45, float("nan"), float("-inf"), 1e-44])
    odd.view(torch.int32)[5] = 0x7FC12345  # a NaN with a payload
    state = {
        "odd": odd,
        "transposed": _sparse(8, 4).t(),
        "part": _sparse(10, 10)[2:4, ::3],
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 7),
        "zeros": torch.zeros(3, 3),
        "image": _sparse(2, 3, 5, 5),
    }
    _round_trip(state, tmp_path / "w.st3w")


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_a_zero_of_either_sign_is_a_zero(tmp_path: Path, name: str) -> None:
    """A product with a mask leaves -0.0 where a weight was negative."""
    mask = torch.arange(1000) % 100 == 0
    dense = torch.where(torch.arange(1000) % 3 == 0, -1.0, 1.0)
    signed = dtype_is_signed(DTYPES[name])
    state = {"w": (dense * mask if signed else mask.float()).to(DTYPES[name])}
    path = tmp_path / "w.st3w"
    save_compact(state, path)
    assert path.stat().st_size < 125 + 10 * DTYPES[name].itemsize + 400
    loaded = load_compact(path)["w"]
    wide = torch.complex128 if loaded.is_complex() else torch.float64
    assert torch.equal(loaded.to(wide), state["w"].to(wide))
    if loaded.is_floating_point():
        zeros = loaded.double()[~mask]
        assert not zeros.signbit().any()


def dtype_is_signed(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex or dtype.is_signed


def test_other_values_than_zeros_keep_their_bits(tmp_path: Path) -> None:
    state = {
        "int8": torch.tensor([-128, 0, 3] * 30, dtype=torch.int8),
        "complex": torch.tensor([complex(-0.0, 1), complex(1, -0.0)]),
        "float8": torch.tensor([-(2**-9), 0.0] * 30).to(torch.float8_e4m3fn),
    }
    _round_trip(state, tmp_path / "w.st3w")
    zero = torch.tensor([complex(-0.0, 0.0), complex(0.0, -0.0)])
    save_compact({"zero": zero}, tmp_path / "z.st3w")
    loaded = torch.view_as_real(load_compact(tmp_path / "z.st3w")["zero"])
    assert not loaded.signbit().any()


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_type(tmp_path: Path, name: str) -> None:
    values = torch.zeros(1000, dtype=torch.float32)
    values[::100] = 1.0
    _round_trip({"w": values.to(DTYPES[name])}, tmp_path / "w.st3w")
    # A bit for each, and ten values.
    limit = 125 + 10 * DTYPES[name].itemsize + 400
    assert (tmp_path / "w.st3w").stat().st_size < limit


def test_dense_tensors_are_stored_dense(tmp_path: Path) -> None:
    save_compact({"w": torch.randn(1000)}, tmp_path / "w.st3w")
    assert (tmp_path / "w.st3w").stat().st_size < 4000 + 300


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    state = {"a": weight, "b": torch.ones(2), "c": weight, "view": weight[:50]}
    loaded = _round_trip(state, tmp_path / "w.st3w")
    assert loaded["c"] is loaded["a"]
    assert loaded["view"].data_ptr() != loaded["a"].data_ptr()
    assert (tmp_path / "w.st3w").stat().st_size < 61_000


def test_the_facade_has_both() -> None:
    assert st3fx.save_compact is save_compact
    assert st3fx.load_compact is load_compact


def _flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: b"", "not a compact weight file"),
        (lambda c: b"PK" + c[2:], "not a compact weight file"),
        (lambda c: c[:20], "not a compact weight file"),
        (lambda c: c[:60], "truncated: its header is not whole"),
        (lambda c: c[:-1], r"truncated: 1,\d+ of 1,\d+ bytes of weights"),
        (lambda c: c + b"x", "damaged or edited"),
        (lambda c: _flip(c, 60), "damaged or edited"),
        (lambda c: _flip(c, len(c) - 1), "damaged or edited"),
        (lambda c: c[:4] + struct.pack("<I", 2) + c[8:], "format 2; this version reads up to 1"),
    ],
)
def test_a_broken_file_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "w.st3w"
    save_compact({"w": _sparse(50, 50)}, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ExportError, match=message):
        load_compact(path)


def _forged(path: Path, header: Any, body: bytes) -> None:
    """A file whose hashes hold: what someone could write to break the reader."""
    if isinstance(header, dict):
        header = {"aliases": {}, "sha256": hashlib.sha256(body).hexdigest(), **header}
    text = json.dumps(header).encode()
    digest = hashlib.sha256(text).digest()
    path.write_bytes(struct.pack("<4sIQ32s", b"ST3W", 1, len(text), digest) + text + body)


def _tensor(**changed: Any) -> dict[str, Any]:
    entry = {"name": "w", "dtype": "float32", "shape": [2], "layout": "dense", "bytes": 8}
    return {"tensors": [{**entry, **changed}]}


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ([], b""),
        ({"tensors": 3}, b""),
        (_tensor(dtype="object"), b"\0" * 8),
        (_tensor(layout="sparse"), b"\0" * 8),
        (_tensor(shape=[3]), b"\0" * 8),
        (_tensor(shape=[-2]), b"\0" * 8),
        (_tensor(shape=[1 << 40, 1 << 40]), b"\0" * 8),
        (_tensor(shape=[1 << 40, 1 << 40], layout="bitmask"), b"\0" * 8),
        (_tensor(shape=["a"]), b"\0" * 8),
        (_tensor(bytes=4), b"\0" * 8),
        (_tensor(bytes=-8), b""),
        (_tensor(layout="bitmask", bytes=1), b"\x03"),
        (_tensor(layout="bitmask", bytes=5), b"\0" * 5),
        ({**_tensor(), "aliases": {"v": "u"}}, b"\0" * 8),
    ],
)
def test_a_forged_header_is_refused(tmp_path: Path, header: Any, body: bytes) -> None:
    path = tmp_path / "w.st3w"
    _forged(path, _tensor(), b"\0" * 8)
    assert torch.equal(load_compact(path)["w"], torch.zeros(2))
    _forged(path, header, body)
    with pytest.raises(ExportError, match=r"w\.st3w"):
        load_compact(path)


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "a": torch.ones(2),
        "extra": {"step": 3},
        "s": torch.eye(2).to_sparse(),
    }
    with pytest.raises(ExportError, match="cannot store extra, s: not a dense tensor"):
        save_compact(state, tmp_path / "w.st3w")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.st3w"
    save_compact({"w": torch.ones(3)}, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"cannot write .*: No space left on device"):
        save_compact({"w": torch.zeros(3)}, path)
    assert torch.equal(load_compact(path)["w"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read .*none\.st3w: No such file"):
        load_compact(tmp_path / "none.st3w")


def test_the_docstring_describes_the_prefix() -> None:
    assert compact.__doc__ is not None
    assert f"{struct.calcsize('<4sIQ32s')}       ..." in compact.__doc__
