"""State dicts in safetensors files: tied tensors are stored once, and no pickle is involved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from st3fx.errors import BundleError
from st3fx.messages import describe, few


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
    odd = [key for key, value in state.items() if not _storable(value)]
    if odd:
        raise BundleError(
            f"cannot store {few(odd)}: not a dense tensor with values (a bundle holds no pickles)"
        )
    stored: dict[str, Tensor] = {}
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for key, value in state.items():
        name = first.setdefault(_identity(value, key), key)
        if name != key:
            aliases[key] = name
            continue
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
        state = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"cannot read {path}: {describe(error)}") from error
    missing = sorted(set(aliases.values()) - state.keys())
    if missing:
        raise BundleError(f"{path} lacks {few(missing)}: convert the model again")
    return state | {key: state[name] for key, name in aliases.items()}


def _storable(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and not value.is_quantized
    )


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
