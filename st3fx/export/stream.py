"""Folds a checkpoint piece by piece into files of the same layout, however large it is.

Each tensor is read, folded and written by itself, large ones by rows: what is in memory is a piece
of one tensor, beside what the thresholds were found with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from st3fx.errors import ExportError, FoldError
from st3fx.files.atomic import put_in_place, temporary_neighbour, tidy
from st3fx.files.compact import positive_zeros
from st3fx.files.ours import WRITER
from st3fx.files.reading import parse_json, read_bytes
from st3fx.files.shards import INDEX, LARGEST_INDEX, Checkpoint, Entry
from st3fx.passes.convert.fold import clean
from st3fx.sparsifier.stored import StoredBound
from st3fx.sparsity.granularity import too_full
from st3fx.sparsity.stored import give_back
from st3fx.sparsity.tally import HALF
from st3fx.under_way import advance, begin
from st3fx.version import VERSION

_AT_A_TIME = 1 << 20
"""Values of a dense tensor that are copied at a time."""


@dataclass(frozen=True)
class Piece:
    """A tensor to write.

    Attributes:
        name: Under which.
        entry: Where its values come from.
        site: The site that it is folded of; ``None`` for what stays as it is.
    """

    name: str
    entry: Entry
    site: StoredBound | None


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: The files.
        nonzeros: Name of each site -> its weights that are not zero.
    """

    files: tuple[Path, ...]
    nonzeros: dict[str, int]


def pieces_of(
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    sites: Sequence[StoredBound],
    untied: Mapping[str, Sequence[str]],
    copies: Mapping[str, Sequence[str]],
) -> dict[str, list[Piece]]:
    """What is to be written into which file.

    Args:
        checkpoint: What is folded.
        names: State-dict key -> name in it, without what is st3fx's own.
        sites: The sites.
        untied: Site -> keys that get a parameter of their own, because others of the same tensor
            stay dense (projections of tied embeddings).
        copies: Site -> names of all copies that the checkpoint has of a tied weight.
    """
    folded: dict[str, StoredBound] = {}
    added: dict[str, list[Piece]] = {}
    for item in sites:
        name = names[item.site.name]
        own = untied.get(item.site.name)
        if own is None:
            folded |= dict.fromkeys(copies.get(item.site.name, (name,)), item)
        else:
            added[name] = [Piece(key, checkpoint.entries[name], item) for key in own]
    kept = set(names.values())
    found: dict[str, list[Piece]] = {}
    for file, shard in checkpoint.shards.items():
        pieces = []
        for entry in shard.entries:
            if entry.name not in kept:
                continue
            new = added.get(entry.name, [])
            if entry.name not in {piece.name for piece in new}:
                pieces.append(Piece(entry.name, entry, folded.get(entry.name)))
            pieces += new
        if pieces:
            found[file] = pieces
    return found


def write_folded(
    checkpoint: Checkpoint, files: Mapping[str, Sequence[Piece]], target: Path
) -> Written:
    """Fold and write all files, whole or not at all.

    Args:
        checkpoint: What is folded.
        files: Of :func:`pieces_of`.
        target: The folder to make, or the file where the checkpoint is one.

    Raises:
        ExportError: When the files cannot be written, or there is no room for them.
        FoldError: If a group has more weights left than N of M allows.
    """
    nonzeros: dict[str, int] = {}
    begin(sum(len(pieces) for pieces in files.values()))
    try:
        tidy(target.parent)  # what a killed process left may be as large
        _require_room(checkpoint, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_neighbour(target) as folder:
            for name, pieces in files.items():
                about = checkpoint.shards[name].about
                with (folder / name).open("wb") as file:
                    _write_file(file, checkpoint, pieces, about, nonzeros)
                    file.flush()
                    os.fsync(file.fileno())
            if not checkpoint.has_index:
                (name,) = files
                (folder / name).replace(target)
                return Written((target,), nonzeros)
            index = checkpoint.path.name
            (folder / index).write_text(_index(checkpoint, files), encoding="utf-8")
            put_in_place(folder, target, (*_written_before(target), *files, index))
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    return Written(tuple(target / name for name in files), nonzeros)


def _require_room(checkpoint: Checkpoint, target: Path) -> None:
    above = target.absolute().parent
    while not above.is_dir():
        above = above.parent
    free = shutil.disk_usage(above).free
    if free < checkpoint.nbytes:
        raise ExportError(
            f"cannot write {target}: the weights need {checkpoint.nbytes / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free there"
        )


def _write_file(
    file: BinaryIO,
    checkpoint: Checkpoint,
    pieces: Sequence[Piece],
    about: Mapping[str, str],
    nonzeros: dict[str, int],
) -> None:
    """A file of safetensors: the length of its header, that, and the bytes of all tensors."""
    header: dict[str, Any] = {"__metadata__": {**about, WRITER: VERSION}}
    place = 0
    for piece in pieces:
        size = piece.entry.end - piece.entry.begin
        header[piece.name] = {
            "dtype": piece.entry.kind, "shape": piece.entry.shape,
            "data_offsets": [place, place + size],
        }  # fmt: skip
        place += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of eight bytes
    file.write(len(text).to_bytes(8, "little") + text)
    for piece in pieces:
        values = _dense(checkpoint, piece.entry) if piece.site is None else _folded(piece.site)
        count = 0
        for part in values:
            count += _nonzeros(part) if piece.site is not None else 0
            if part.numel():
                file.write(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del part
        give_back()
        if piece.site is not None:
            nonzeros[piece.site.site.name] = count
        advance()


def _nonzeros(part: Tensor) -> int:
    """How many values of a weight are not 0, all zeros being positive."""
    bits = part.view(torch.int16) if part.dtype in HALF else part  # torch counts these faster
    return int(bits.count_nonzero())


def _dense(checkpoint: Checkpoint, entry: Entry) -> Iterator[Tensor]:
    """What no threshold stands behind, some rows after the others; its zeros are positive."""
    rows = entry.shape[0] if entry.shape else 1
    step = max(1, _AT_A_TIME * rows // max(1, entry.numel))
    for first in range(0, rows, step):
        yield positive_zeros(checkpoint.read(entry.name, first, first + step))


def _folded(item: StoredBound) -> Iterator[Tensor]:
    """The effective weight, some rows after the others.

    Raises:
        FoldError: As ``st3fx.fold``.
    """
    granularity, reached = item.sparse.method.granularity, item.sparse.run.sparsity
    grouping = granularity.grouping(item.site)
    checks = grouping is not None and grouping.kept and (reached or 0.0) >= granularity.most
    for first, last in item.ends():
        part = clean(item.folded(first, last))
        if checks and grouping is not None and too_full(part, grouping):
            raise FoldError(
                f"{item.site.name}: groups have more weights left than {granularity.text} allows: "
                "was its threshold or mask written to?"
            )
        yield part


def _index(checkpoint: Checkpoint, files: Mapping[str, Sequence[Piece]]) -> str:
    """As Hugging Face writes it, with who wrote it."""
    places = {piece.name: name for name, pieces in files.items() for piece in pieces}
    entries = [piece.entry for pieces in files.values() for piece in pieces]
    size = sum(entry.end - entry.begin for entry in entries)
    about = {**checkpoint.about, "total_size": size, WRITER: VERSION}
    if "total_parameters" in about:
        about["total_parameters"] = sum(entry.numel for entry in entries)
    body = {"metadata": about, "weight_map": dict(sorted(places.items()))}
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def _written_before(target: Path) -> list[str]:
    """Names of the files of ours that are in a folder already."""
    found = []
    for index in target.glob(f"*{INDEX}") if target.is_dir() else ():
        found += [index.name, *written_by_us(index)]
    return found


def written_by_us(index: Path) -> list[str]:
    """The files that an index names, if st3fx has written it; else none."""
    try:
        body = parse_json(read_bytes(index, LARGEST_INDEX))
        if WRITER not in body["metadata"]:
            return []
        return [name for name in body["weight_map"].values() if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def check_folder(folder: Path, checkpoint: Path, *, force: bool) -> None:
    """Fail early if a folded checkpoint cannot be written into ``folder``. Writes nothing.

    Args:
        folder: To be made. One that is there is replaced if st3fx wrote such a one into it; other
            files in it stay.
        checkpoint: What is read, which is never written to.
        force: Whether one that is there may be replaced.

    Raises:
        ExportError: When something else is there.
    """
    target = folder.resolve()
    if checkpoint.resolve().parent == target or checkpoint.parent.resolve() == target:
        raise ExportError(f"{folder} is where the weights are read from: choose another folder")
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{folder} is a file: name the folder to write")
    if not any(target.iterdir()):
        return
    if not any(written_by_us(index) for index in target.glob(f"*{INDEX}")):
        raise ExportError(f"{folder} holds other things than folded weights: choose another folder")
    if not force:
        raise ExportError(f"{folder} exists: choose another folder, or replace it by --force")
