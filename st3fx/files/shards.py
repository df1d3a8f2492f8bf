"""Checkpoints in safetensors files, as Hugging Face writes them: shards, and an index beside them.

    model.safetensors.index.json         {"metadata": {...}, "weight_map": {name: file}}
    model-00001-of-00004.safetensors     some of the tensors

Opening one reads the headers alone. Tensors, or some rows of them, are read when they are asked
for, into memory of their own: nothing is mapped, so a process holds what it asked for and no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import _TYPES
from torch import Tensor

from st3fx.errors import SpecError, describe, few
from st3fx.files.reading import DamageError, Format, build, check_regular

INDEX = ".safetensors.index.json"
"""How the name of an index ends."""

SUFFIX = ".safetensors"

_MAIN = "model.safetensors"
"""The file that counts in a folder, whole or with an index."""

LARGEST_INDEX = 256 << 20
"""Bytes that are read of one."""

_FORMAT = Format(SpecError, "save the checkpoint again, or name another", limit=LARGEST_INDEX)
_LARGEST_HEADER = 100_000_000
"""Bytes, as of the safetensors format."""

_LONGEST = 255
"""Bytes that the name of a file may have."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint.

    Attributes:
        name: Its full name.
        file: The name of its file.
        kind: Its dtype, in the words of the format.
        shape: Its sizes.
        begin: Where its bytes begin in the file.
        end: Where they end.
    """

    name: str
    file: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        """As torch calls it."""
        found = _TYPES[self.kind]
        assert found is not None  # or its header would have been refused
        return found

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Bytes of one step along its first dimension."""
        return (self.end - self.begin) // max(1, self.shape[0] if self.shape else 1)


@dataclass(frozen=True)
class Shard:
    """A file of a checkpoint.

    Attributes:
        entries: Its tensors, in the order of their bytes.
        about: What it says of itself.
    """

    entries: tuple[Entry, ...]
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read and fit its index.

    Attributes:
        path: The index, or the one file.
        shards: Name of each file -> what is in it.
        entries: Full name -> tensor.
        about: What the index says of the whole; empty without one.
    """

    path: Path
    shards: dict[str, Shard]
    entries: dict[str, Entry]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def has_index(self) -> bool:
        """Whether it is an index with shards, not one file."""
        return self.path.name.endswith(INDEX)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.end - entry.begin for entry in self.entries.values())

    def file(self, name: str) -> Path:
        """Where a shard lies."""
        return self.path.parent / name

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """A tensor, or some of its rows, in memory of its own.

        Args:
            name: Its full name.
            first: The first index along its first dimension.
            last: The one after the last; ``None`` for all of them.

        Raises:
            SpecError: When the file cannot be read, or has become shorter.
        """
        entry = self.entries[name]
        shape = entry.shape
        if shape:
            last = shape[0] if last is None else min(last, shape[0])
            shape = (last - first, *shape[1:])
            begin, end = entry.begin + first * entry.row, entry.begin + last * entry.row
        else:
            begin, end = entry.begin, entry.end
        memory = torch.empty(end - begin, dtype=torch.uint8)
        if end > begin:
            self._fill(memory, entry, begin)
        return memory.view(entry.dtype).reshape(shape)

    def _fill(self, memory: Tensor, entry: Entry, begin: int) -> None:
        place = self.file(entry.file)
        try:
            with place.open("rb", buffering=0) as file:
                file.seek(begin)
                room, done = memory.numpy().data, 0
                while done < len(room):  # a system reads two gigabytes at a time, at most
                    count = file.readinto(room[done:])
                    if not count:
                        raise SpecError(f"{place} ends within {entry.name}: {_FORMAT.advice}")
                    done += count
        except OSError as error:
            _FORMAT.fail(place, error)


def find_checkpoint(path: str | Path) -> Path | None:
    """The index or the file that a path means, if it means a checkpoint of this kind.

    Args:
        path: An index, or a folder with one, or with one file of safetensors.

    Raises:
        SpecError: For a folder with several that could be meant, or none.
    """
    place = Path(path)
    if not place.is_dir():
        return place if place.name.endswith(INDEX) else None
    for name in (f"model{INDEX}", _MAIN):
        if (place / name).is_file():
            return place / name
    for pattern in (f"*{INDEX}", f"*{SUFFIX}"):
        found = sorted(place.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = few([file.name for file in found], limit=3)
            raise SpecError(f"{path} holds {names}: name the one to read")
    raise SpecError(f"{path} is a folder without an index or a file of safetensors")


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read index and headers of a checkpoint.

    Args:
        path: An index, a folder with one, or a file of safetensors.

    Raises:
        SpecError: When a file is missing, broken or truncated, index and shards disagree, a tensor
            is in two shards, or the index names a file outside of its folder.
    """
    place = find_checkpoint(path) or Path(path)
    if not place.name.endswith(INDEX):
        shard = _read_header(place)
        return Checkpoint(place, {place.name: shard}, {e.name: e for e in shard.entries})
    files, about = _read_index(place)
    shards = {}
    for name in sorted(set(files.values())):
        if not (place.parent / name).is_file():
            raise SpecError(f"{place} names {name}, which is missing beside it")
        shards[name] = _read_header(place.parent / name)
    return Checkpoint(place, shards, _joined(place, files, shards), about)


def _read_index(place: Path) -> tuple[dict[str, str], dict[str, Any]]:
    body = _FORMAT.json(_FORMAT.content(place), place)
    try:
        if not isinstance(body, dict) or not body.get("weight_map"):
            raise DamageError("has no weight_map")
        files = build(body["weight_map"], dict[str, str], "weight_map")
    except DamageError as error:
        _FORMAT.fail(place, error)
    for name in files.values():
        plain = Path(name).name == name and "\\" not in name and name not in ("", ".", "..")
        if not plain or len(name.encode()) > _LONGEST:
            raise SpecError(f"{place} names {name[:80]!r}, which is no file of its own folder")
        if not name.endswith(SUFFIX):
            raise SpecError(f"{place} names {name[:80]!r}, which is no file of safetensors")
    about = body.get("metadata")
    return files, about if isinstance(about, dict) else {}


def _read_header(place: Path) -> Shard:
    """What a file of safetensors has, once the library has checked it."""
    try:
        check_regular(place)
        with safetensors.safe_open(place, framework="pt"):
            pass
        with place.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, _LARGEST_HEADER)))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise SpecError(
            f"{place} is not a safetensors file, or is broken: {describe(error)}"
        ) from error
    about = header.pop("__metadata__", {})
    entries = []
    for name, own in header.items():
        if _TYPES.get(own["dtype"]) is None:
            raise SpecError(f"{place}: {name} is of the type {own['dtype']}, which torch has not")
        first, last = own["data_offsets"]
        shape = tuple(own["shape"])
        entries.append(
            Entry(name, place.name, own["dtype"], shape, 8 + size + first, 8 + size + last)
        )
    return Shard(tuple(sorted(entries, key=lambda entry: (entry.begin, entry.end))), about)


def _joined(place: Path, files: Mapping[str, str], shards: Mapping[str, Shard]) -> dict[str, Entry]:
    """All tensors, each once and where the index says."""
    found: dict[str, Entry] = {}
    for file, shard in shards.items():
        for entry in shard.entries:
            other = found.setdefault(entry.name, entry)
            if other is not entry:
                raise SpecError(f"{entry.name} is in both {other.file} and {file}: {place}")
    strange = [name for name in found if name not in files]
    if strange:
        raise SpecError(f"{place} lacks {few(strange, limit=3)}, which {_is(strange)} in its files")
    wrong = [name for name, file in files.items() if name not in found or found[name].file != file]
    if wrong:
        raise SpecError(f"{place}: {few(wrong, limit=3)} {_is(wrong)} not in the file that it says")
    return found


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
