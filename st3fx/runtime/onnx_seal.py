"""The digest that an ONNX file of ours begins with, so that damage to it is noticed.

It is an entry of the model's metadata. Fields of a protobuf may stand in any order, and what writes
one puts them in that of their numbers, metadata behind the graph. So a file that begins with the
entry is as we wrote it, or damaged; one that another tool has written anew, with the entry where
such tools put it, is theirs, and holds what they mean.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

KEY = "st3fx.sha256"
"""Name of the entry: the digest of all that comes after it."""

DATA = "st3fx.data.sha256"
"""Name of another one: the digest of the file beside it, with the weights."""

_DIGITS = 64


def _entry(digest: str) -> bytes:
    model = onnx.ModelProto()
    model.metadata_props.add(key=KEY, value=digest)
    return bytes(model.SerializeToString())


_LENGTH = len(_entry("0" * _DIGITS))
_HEAD = _entry("0" * _DIGITS)[:-_DIGITS]


def sealed(model: onnx.ModelProto, data: Path | None = None) -> tuple[bytes, bytes]:
    """The content of a file, in two parts.

    Args:
        model: It; what it has of such digests is replaced.
        data: The file with its weights, if they are in another one.
    """
    unseal(model)
    if data is not None:
        model.metadata_props.add(key=DATA, value=_file_digest(data))
    content = model.SerializeToString()
    return _entry(hashlib.sha256(content).hexdigest()), content


def unseal(model: onnx.ModelProto) -> None:
    """Take the digests out of a model that is about to become another one."""
    kept = [item for item in model.metadata_props if item.key not in (KEY, DATA)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def is_whole(content: bytes) -> bool:
    """Whether a file is as it was written, or not one of ours."""
    digest = content[len(_HEAD) : _LENGTH]
    found = hashlib.sha256(memoryview(content)[_LENGTH:]).hexdigest().encode()
    return not _is_ours(content) or (content.startswith(_HEAD) and found == digest)


def has_data(content: bytes, model: onnx.ModelProto, data: Path) -> bool:
    """Whether the weights beside a file of ours are those that were written with it."""
    wanted = [item.value for item in model.metadata_props if item.key == DATA]
    if not _is_ours(content) or not wanted:
        return True
    return wanted == [_file_digest(data)]


def is_sealed(path: Path) -> bool:
    """Whether a file that could be opened begins with a digest of ours."""
    with path.open("rb") as file:
        return file.read(_LENGTH).startswith(_HEAD)


def _is_ours(content: bytes) -> bool:
    """Whether a file begins with metadata, as none of another tool does, or with our entry."""
    return content[:1] == _HEAD[:1] or KEY.encode() in content[:_LENGTH]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
