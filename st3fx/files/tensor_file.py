"""State dicts in safetensors files: tied tensors are stored once, and no pickle is involved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from st3fx.errors import BundleError, describe, few
from st3fx.files.reading import check_regular


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
        save_file(stored, path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"cannot write {path}: {describe(error)}") from error
    return aliases


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
