"""Loads weights into a model: safetensors whole or in shards, .st3w, a checkpoint read safely."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from torch import Tensor, nn

from st3fx.errors import ExportError, SpecError, describe, few
from st3fx.files.compact import SUFFIX, load_compact
from st3fx.files.ours import is_ours
from st3fx.files.seal import check_sealed
from st3fx.files.shards import Checkpoint, Entry, find_checkpoint, open_checkpoint
from st3fx.files.tensor_file import load_pickled, read_state
from st3fx.modules.marks import is_state
from st3fx.modules.unloaded import give_values, on_meta
from st3fx.under_way import advance, begin

T = TypeVar("T")

_WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the state dict in a checkpoint."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every key."""


def require_file(path: str | Path) -> None:
    """Fail early where there is no weight file, nor a folder with weights in shards.

    Raises:
        SpecError: Then.
    """
    if Path(path).is_dir():
        find_checkpoint(path)
    elif not Path(path).is_file():
        raise SpecError(f"no weight file {path}")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a weight file into ``model``, every key of it and every key of the model.

    Args:
        model: Changed in place.
        path: A ``.safetensors`` or compact ``.st3w`` file, an index of shards
            (``model.safetensors.index.json``) or a folder with one, or what ``torch.save`` wrote: a
            state dict, or a checkpoint that holds one. Nothing but tensors and plain containers is
            unpickled. Of shards one tensor after the other is read.

    Raises:
        SpecError: When the file is missing, broken, holds no state dict or does not fit the model;
            the message names the first missing, unexpected and misshaped keys.
    """
    file = Path(path)
    require_file(file)
    checkpoint = find_checkpoint(file)
    if checkpoint is not None:
        _load_shards(model, open_checkpoint(checkpoint))
        return
    state = _stripped(_state_dict(_read(file), file), model)
    # A format that drops tied tensors, as safetensors does, keeps one name of each.
    state |= _tied(model.state_dict(keep_vars=True), state)
    if on_meta(model):
        _require_fit(model, state, file)
        give_values(model, state.items())
        return
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        difference = _difference(model, state) or describe(error)
        raise SpecError(f"weights {file} do not fit the model: {difference}") from error


def _load_shards(model: nn.Module, checkpoint: Checkpoint) -> None:
    """One tensor after the other, so that the weights are never in memory twice."""
    names = matched(_own(model), checkpoint)
    state = {key: shape_of(checkpoint.entries[name]) for key, name in names.items()}
    _require_fit(model, state, checkpoint.path)
    first = {name: key for key, name in reversed(names.items())}  # of tied ones one is enough
    begin(len(first))

    def values() -> Iterator[tuple[str, Tensor]]:
        for shard in checkpoint.shards.values():
            for entry in shard.entries:
                yield first[entry.name], checkpoint.read(entry.name)
                advance()

    give_values(model, values())


def matched(own: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, str]:
    """The keys of a model's state dict -> names in a checkpoint; others are under their own names.

    Args:
        own: The model's state dict, with tied tensors as one object.
        checkpoint: Whose names may have the prefixes of wrappers, and but one of tied tensors.
    """
    names = {name: name for name in checkpoint.entries}
    for prefix in _PREFIXES:
        if all(n.startswith(prefix) for n in names) and not all(k.startswith(prefix) for k in own):
            names = {key.removeprefix(prefix): name for key, name in names.items()}
    return names | _tied(own, names)


def shape_of(entry: Entry) -> Tensor:
    """A tensor of a checkpoint without its values."""
    return torch.empty(entry.shape, dtype=entry.dtype, device="meta")


def _require_fit(model: nn.Module, state: Mapping[str, Any], file: Path) -> None:
    """Fail unless keys and shapes are those of a model.

    Raises:
        SpecError: Naming the first that are not.
    """
    difference = differences(_own(model), state)
    if difference:
        raise SpecError(f"weights {file} do not fit the model: {difference}")


def _own(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict with tied tensors as one object, without entries of st3fx."""
    own = model.state_dict(keep_vars=True)
    return {key: value for key, value in own.items() if not is_state(key)}


def _read(file: Path) -> Any:
    if file.suffix == SUFFIX:
        try:
            return load_compact(file)
        except ExportError as error:
            raise SpecError(str(error)) from error
    if file.suffix == ".safetensors":
        try:
            return read_state(file)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise SpecError(f"{file} is not a safetensors file, or is broken: {error}") from error
    try:
        if is_ours(file):
            check_sealed(file)
        return load_pickled(file)
    except pickle.UnpicklingError as error:
        # The same exception for a class that is not allowed and for bytes that are no pickle.
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise SpecError(
                f"{file} holds more than weights, which is not loaded as it could run any code: "
                "save model.state_dict() alone"
            ) from error
        raise SpecError(f"{file} is not a checkpoint, or is broken") from error
    except Exception as error:
        raise SpecError(f"{file} is not a checkpoint, or is broken: {describe(error)}") from error


def _state_dict(content: Any, file: Path) -> dict[str, Any]:
    """The state dict in what a file holds."""
    if isinstance(content, Mapping):
        for key in _WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return dict(content[key])
        if content and any(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
        found = f"a dict with {few(map(repr, content))}"
    else:
        found = f"a {type(content).__name__}"
    raise SpecError(f"{file} holds no state dict but {found}: save model.state_dict()")


def _stripped(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Without the prefixes of wrappers that the model itself does not have."""
    own = model.state_dict().keys()
    for prefix in _PREFIXES:
        wrapped = all(key.startswith(prefix) for key in state)
        if state and wrapped and not all(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _tied(own: Mapping[str, Tensor], state: Mapping[str, T]) -> dict[str, T]:
    """Missing keys whose tensor is, in the model, one that the file has under another name."""
    by_identity = {id(value): key for key, value in own.items() if key in state}
    missing = ((key, by_identity.get(id(value))) for key, value in own.items() if key not in state)
    return {key: state[name] for key, name in missing if name is not None}


def _difference(model: nn.Module, state: Mapping[str, Any]) -> str:
    return differences(model.state_dict(), state)


def differences(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
    """``missing a, b; unexpected c; d is (3, 4) in the file and (4, 4) in the model``."""
    parts = []
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        for key in own
        if isinstance(state.get(key), Tensor) and state[key].shape != own[key].shape
    ]
    if missing:
        parts.append(f"missing {few(missing, limit=3)}")
    if unexpected:
        parts.append(f"unexpected {few(unexpected, limit=3)}")
    if misshaped:
        parts.append(few(misshaped, limit=2))
    return "; ".join(parts)
