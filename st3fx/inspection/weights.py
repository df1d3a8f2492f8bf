"""Files of tensors: safetensors, shards, ``.st3w``, what ``torch.save`` wrote of a state dict."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from st3fx.errors import InspectError, describe, few
from st3fx.files.compact import VERSION as COMPACT_VERSION
from st3fx.files.compact import scan_compact
from st3fx.files.ours import WRITER
from st3fx.files.shards import Checkpoint, Entry, open_checkpoint
from st3fx.files.tensor_file import load_pickled, scan_state
from st3fx.inspection.found import Digest, Found, Layer, share_of_zeros
from st3fx.modules.marks import is_state

_WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the state dict in a checkpoint."""

LATENT = (
    "These are the latent weights of a converted model, before its thresholds: zeros are counted "
    "in its bundle or run."
)


def counted(name: str, tensor: Tensor) -> Layer:
    """A tensor with its zeros; without where its type has none that can be counted."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    zeros: int | None
    try:
        zeros = tensor.numel() - int(torch.count_nonzero(tensor))
    except (RuntimeError, NotImplementedError):  # float8 and the like: by their bits
        wide = tensor.to(torch.float32) if tensor.is_floating_point() else None
        zeros = None if wide is None else tensor.numel() - int(torch.count_nonzero(wide))
    return Layer(name, tuple(tensor.shape), dtype, zeros)


def is_statistic(name: str) -> bool:
    """Whether an entry of a state dict is what batch norms have seen, and no parameter."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


class Tensors:
    """Takes in the tensors of a file one by one."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.parameters = 0
        self.state: list[str] = []

    def __call__(self, name: str, tensor: Tensor) -> None:
        """Count one."""
        if is_state(name):
            self.state.append(name)
            return
        if not is_statistic(name):
            self.parameters += tensor.numel()
        if tensor.dim() > 1:
            self.layers.append(counted(name, tensor))

    def found(self, path: Path, kind: str, format_: str, **more: Any) -> Found:
        """What is known of the file."""
        layers = tuple(self.layers)
        return Found(
            str(path), kind, format_, path.stat().st_size, parameters=self.parameters,
            layers=layers, reached=None if self.state else share_of_zeros(layers),
            notes=(LATENT,) if self.state else (), **more,
        )  # fmt: skip


def look_safetensors(path: Path) -> Found:
    """A safetensors file, anybody's.

    Raises:
        InspectError: When it is none, or not what was written.
    """
    tensors = Tensors()
    try:
        written = scan_state(path, tensors)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InspectError(
            f"{path} is not a safetensors file, or is broken: {describe(error)}"
        ) from error
    version, _, digest = (written or "").partition(" ")
    digests = (Digest("all tensors", holds=True),) if digest else ()
    return tensors.found(
        path, "weights", "safetensors", digests=digests,
        versions={"st3fx": version} if written else {},
    )  # fmt: skip


_AT_A_TIME = 1 << 20
"""Values of a tensor in a shard that are counted at once."""


def look_shards(path: Path) -> Found:
    """An index with its shards, or a folder with one; some rows of a tensor are read at a time.

    Raises:
        SpecError: When a shard is missing or broken, or the index says what is not so.
    """
    checkpoint = open_checkpoint(path)
    tensors = Tensors()
    for shard in checkpoint.shards.values():
        for entry in shard.entries:
            if is_state(entry.name):
                tensors.state.append(entry.name)
                continue
            if not is_statistic(entry.name):
                tensors.parameters += entry.numel
            if len(entry.shape) > 1:
                tensors.layers.append(_counted_in(checkpoint, entry))
    places = (checkpoint.path, *map(checkpoint.file, checkpoint.shards))
    files = {place.name: place.stat().st_size for place in places}
    count = len(checkpoint.shards)
    kind = f"weights in {count} {'shard' if count == 1 else 'shards'}"
    written = str(checkpoint.about.get(WRITER, ""))
    found = tensors.found(
        checkpoint.path, kind, "safetensors", files=files,
        versions={"st3fx": written} if written else {},
    )  # fmt: skip
    return dataclasses.replace(found, bytes=sum(files.values()))


def _counted_in(checkpoint: Checkpoint, entry: Entry) -> Layer:
    step = max(1, _AT_A_TIME * entry.shape[0] // max(1, entry.numel))
    parts = [
        counted(entry.name, checkpoint.read(entry.name, first, first + step)).zeros
        for first in range(0, entry.shape[0], step)
    ]
    known = [zeros for zeros in parts if zeros is not None]
    dtype = str(entry.dtype).removeprefix("torch.")
    return Layer(entry.name, entry.shape, dtype, sum(known) if len(known) == len(parts) else None)


def look_compact(path: Path) -> Found:
    """A ``.st3w`` file.

    Raises:
        ExportError: As ``st3fx.load_compact``.
    """
    stored, aliases = scan_compact(path)
    layers = tuple(
        Layer(item.name, item.shape, item.dtype, item.zeros)
        for item in stored
        if len(item.shape) > 1 and not is_state(item.name)
    )
    parameters = sum(math.prod(item.shape) for item in stored if not is_statistic(item.name))
    tied = f"{few(aliases)} {'is' if len(aliases) == 1 else 'are'} tied to others."
    return Found(
        str(path), "compact weights", f"st3w {COMPACT_VERSION}", path.stat().st_size,
        parameters=parameters, reached=share_of_zeros(layers), layers=layers,
        digests=(Digest("header", holds=True), Digest("all tensors", holds=True)),
        notes=(tied,) if aliases else (),
    )  # fmt: skip


def read_pickled(path: Path) -> Any:
    """What ``torch.save`` wrote, its tensors still in the file.

    Raises:
        InspectError: When it is something else, or holds more than data.
    """
    try:
        return load_pickled(path, mapped=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise InspectError(
                f"{path} holds more than tensors and plain values, which is not loaded as it "
                "could run any code"
            ) from error
        raise InspectError(f"{path} is not a checkpoint, or is broken") from error
    except Exception as error:  # of many types
        raise InspectError(
            f"{path} is not a checkpoint, or is broken: {describe(error)}"
        ) from error


def look_pickled(path: Path, content: Any) -> Found:
    """A state dict of anybody's, or a checkpoint that holds one.

    Raises:
        InspectError: When it holds no tensors.
    """
    state, beside = content, 0
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state, beside = content[key], len(content) - 1
            break
    entries = state.items() if isinstance(state, Mapping) else ()
    named = {key: value for key, value in entries if isinstance(value, Tensor)}
    if not named or not all(isinstance(key, str) for key in named):
        raise InspectError(f"{path} holds no state dict but a {type(content).__name__}")
    tensors = Tensors()
    try:
        for name, tensor in named.items():
            tensors(name, tensor)
    except (RuntimeError, NotImplementedError) as error:
        raise InspectError(f"{path} has a tensor that cannot be read: {describe(error)}") from error
    found = tensors.found(path, "weights", "torch.save")
    if not beside:
        return found
    others = few(str(key) for key in content if content[key] is not state)
    return Found(**{**vars(found), "notes": (*found.notes, f"Beside the weights: {others}.")})
