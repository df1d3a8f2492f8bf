"""State dicts in safetensors files, with who wrote them and a digest: no pickle is involved.

The digest is the SHA-256 of names, types, shapes and bytes of all tensors, by name, whatever their
order in the file. It stands in the file's metadata, which other readers leave alone; a bundle's
manifest has one of the whole file, so there tied tensors are stored once.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from st3fx.errors import BundleError, describe, few
from st3fx.files.ours import WRITER
from st3fx.files.reading import DamageError, check_regular
from st3fx.version import VERSION

_DIGEST = " sha256 "
"""Stands after our version, under our name: one entry, as the order of several is by chance."""


def save_state(state: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Write a state dict.

    Args:
        state: Full name -> tensor, on any device, of any stride.
        path: The file to write.

    Returns:
        Key -> the key that the same tensor is stored under, for every tensor not stored itself.

    Raises:
        BundleError: For values that are not plain tensors, and when the file cannot be written.
    """
    odd = [key for key, value in state.items() if not storable(value)]
    if odd:
        raise BundleError(
            f"cannot store {few(odd)}: not a dense tensor with values (a bundle holds no pickles)"
        )
    distinct, aliases = untied(state)
    stored: dict[str, Tensor] = {}
    for key, value in distinct.items():
        tensor = value.detach().cpu().contiguous()
        # A view of part of a storage must not be taken for a tied tensor by the writer.
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        stored[key] = tensor if whole else tensor.clone()
    try:
        save_file(stored, path, metadata={WRITER: VERSION})
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"cannot write {path}: {describe(error)}") from error
    return aliases


def to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """The content of a file that holds dense tensors under all their names, with its digest."""
    whole = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    return save(whole, metadata={WRITER: VERSION + _DIGEST + digest_of(whole)})


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of anybody's file; one that has a digest of ours is checked.

    Raises:
        SafetensorError: When it is no such file.
        OSError: When it cannot be read.
        ValueError: When it is not what was written.
    """
    check_regular(path)
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
    # What says that it is ours may be what was damaged.
    marks = [text for key, text in about.items() if key == WRITER or _DIGEST in text]
    written = next((text.partition(_DIGEST)[2] for text in marks if " " in text), None)
    state: dict[str, Tensor] = load_file(path)
    if written is not None and written != digest_of(state):
        raise ValueError("it was damaged or edited after it was written, as its digest says")
    return state


def scan_state(path: Path, visit: Callable[[str, Tensor], None]) -> str | None:
    """Look at the tensors of anybody's file one by one, so that it may be larger than the memory.

    Args:
        path: The file.
        visit: Given name and tensor, in the order of their names.

    Returns:
        What it says of who wrote it, if that was st3fx: our version, and the digest if it has one,
        which was checked.

    Raises:
        SafetensorError: When it is no such file.
        OSError: When it cannot be read.
        ValueError: When it is not what was written.
    """
    check_regular(path)
    digest = hashlib.sha256()
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        marks = [text for key, text in about.items() if key == WRITER or _DIGEST in text]
        written = next((text.partition(_DIGEST)[2] for text in marks if " " in text), None)
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            if written is not None:
                _update(digest, name, tensor)
            visit(name, tensor)
    if written is not None and written != digest.hexdigest():
        raise ValueError("it was damaged or edited after it was written, as its digest says")
    return marks[0] if marks else None


def load_pickled(path: Path, *, mapped: bool = False) -> Any:
    """What ``torch.save`` wrote, anybody's: tensors on the CPU, and plain containers.

    Args:
        path: The file.
        mapped: Whether tensors stay in the file until they are read.

    Raises:
        OSError: When it cannot be read.
        DamageError: When it is no regular file, or would become much larger than it is.
        Exception: Of many types, when it is something else or holds more.
    """
    check_regular(path)
    packed = zipfile.is_zipfile(path)
    if packed:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            stored = all(e.compress_type == zipfile.ZIP_STORED for e in archive.infolist())
        # torch.save packs nothing: what is packed may be a thousand times as large.
        if not stored or size > path.stat().st_size:
            raise DamageError("is packed, as torch.save writes none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sparse tensors, which fit no parameter anyway
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and packed)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, without a copy of dense tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(state):
        _update(digest, name, state[name])
    return digest.hexdigest()


def _update(digest: Any, name: str, tensor: Tensor) -> None:
    value = tensor.detach().cpu().contiguous()
    digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
    if value.numel():
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)


def load_state(path: Path, aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Read a state dict; tied entries are the same tensor again.

    Raises:
        BundleError: When the file is broken or lacks a tensor.
    """
    try:
        check_regular(path)
        state = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"cannot read {path}: {describe(error)}") from error
    missing = sorted(set(aliases.values()) - state.keys())
    if missing:
        raise BundleError(f"{path} lacks {few(missing)}: convert the model again")
    return state | {key: state[name] for key, name in aliases.items()}


def storable(value: object) -> bool:
    """Whether a value is a plain tensor: dense, with values, not quantised."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and not value.is_quantized
    )


def untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store, and for each other name the one that the same memory is stored under."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[object, str] = {}
    for key, value in state.items():
        name = first.setdefault(_identity(value, key), key)
        if name == key:
            stored[key] = value
        else:
            aliases[key] = name
    return stored, aliases


def _identity(tensor: Tensor, key: str) -> object:
    """Equal for tensors that are the same memory read the same way; empty ones are never tied."""
    if tensor.numel() == 0:
        return key
    return (
        tensor.device,
        tensor.dtype,
        tensor.data_ptr(),
        tuple(tensor.shape),
        tensor.stride(),
    )
