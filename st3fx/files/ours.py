"""Whether st3fx wrote a file: by what is in it, whatever its name promises.

Nothing else is ever removed, and nothing else is taken for an older result.
"""

from __future__ import annotations

import os
from pathlib import Path

WRITER = "st3fx"
"""Stands in files whose format has a place for it."""

_HEAD = 4096
"""Bytes at the beginning, in which each of our formats says what it is."""

_SIGNS: dict[str, tuple[bytes, ...]] = {
    ".onnx": (b"\x12\x05st3fx",),  # ``producer_name``, the second field
    ".safetensors": (b'"__metadata__":{', b'"st3fx'),
    ".st3w": (b"ST3W",),
    ".pt": (b"PK\x03\x04",),  # its end is looked at too
    ".png": (b"\x89PNG", b"st3fx "),
    ".html": (b"st3fx report",),
    ".toml": (b"# Written by st3fx train.",),
    ".jsonl": (b'{"kind": "',),
}
_NAMED: dict[str, tuple[bytes, ...]] = {
    "manifest.json": (b'"st3fx-bundle"',),
    "quantize.json": (b'"calibration"', b'"opset"'),
    "bench.json": (b'"st3fx-bench"',),
    "sensitivity.json": (b'"st3fx-sensitivity"',),
    "sweep.json": (b'"st3fx-sweep"',),
    "sweep.html": (b"st3fx sweep",),
}

BUNDLE = ("manifest.json", "model.safetensors", "graph.txt")
"""Names of all files that st3fx writes into a bundle: no other is ever removed from its folder."""

SEAL = b"st3fx-sha256:"
"""Stands before the digest at the end of a checkpoint."""


def is_ours(path: Path) -> bool:
    """Whether a file is there, no link, and was written by st3fx.

    Weights in a file of their own, ``model.onnx.data``, are those of the file beside them.
    """
    if path.suffix == ".data":
        return path.is_file() and not path.is_symlink() and is_ours(path.with_suffix(""))
    signs = _NAMED.get(path.name) or _SIGNS.get(path.suffix)
    if signs is None or path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if path.suffix == ".pt":
                file.seek(-min(100, file.seek(0, os.SEEK_END)), os.SEEK_END)
                return SEAL in file.read()
    except OSError:
        return False
    return all(sign in head for sign in signs)


def says(path: Path, sign: bytes, within: int = _HEAD) -> bool:
    """Whether a text stands near the beginning of a file; not where there is none to read."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return sign in file.read(within)
    except OSError:
        return False


def is_bundle(folder: Path) -> bool:
    """Whether something is an empty folder or a bundle, whole or damaged.

    A bundle is known by what is in its manifest or, where that is damaged, in its weights.
    """
    if not folder.is_dir():
        return False
    return not any(folder.iterdir()) or any(is_ours(folder / name) for name in BUNDLE[:2])
