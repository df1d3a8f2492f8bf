"""The one way to read a file of data: bounded, plain, of the types that its dataclass says.

A :class:`Format` says which error a broken file is, and what to do about it. It reads the bytes of
a regular file, never of a folder, pipe or device and never more than its limit; makes JSON or TOML
of them, with names only once, no number that is none or has more than 64 bits, and no more than
:data:`DEPTH` levels; and builds dataclasses by their annotations (``msgspec``: a text is no number,
a boolean no integer), without names that these do not have.

What st3fx writes as JSON for itself has a digest over all of the rest (:func:`sealed`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import stat
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from st3fx.errors import St3fxError

T = TypeVar("T")

Positive = Annotated[float, msgspec.Meta(gt=0)]
"""A number above 0."""

Size = Annotated[float, msgspec.Meta(ge=0)]
"""A number of 0 or more."""

Count = Annotated[int, msgspec.Meta(ge=0)]
"""A whole number of 0 or more."""

Some = Annotated[int, msgspec.Meta(ge=1)]
"""A whole number of 1 or more."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A number from 0 to 1."""

DEPTH = 32
"""Levels of lists and tables in each other that a file may have."""

DIGEST = "digest"
"""Where a sealed file has its digest."""


class DamageError(ValueError):
    """What is wrong with a file, and where in it: ``rows[2].batch: expected int, got str``."""


def check_regular(path: str | Path) -> None:
    """Fail unless a path leads to a regular file: opening a pipe would hang, a device never end.

    Raises:
        OSError: When there is nothing.
        DamageError: When it is something else.
    """
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
        kind = next((name for test, name in kinds if test(mode)), "device")
        raise DamageError(f"is a {kind}, not a file")


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a regular file.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        OSError: When it cannot be read.
        DamageError: When it is no regular file, or larger.
    """
    check_regular(path)
    # Should it have become a pipe since, opening does not wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        # The size is known before it is read, but of files that the system makes up.
        large = os.fstat(file.fileno()).st_size > limit
        content = b"" if large else file.read(limit + 1)
    if large or len(content) > limit:
        raise DamageError(f"has more than {limit:,} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """Plain values from JSON.

    Raises:
        DamageError: When it is none, or more than :func:`_check_plain` lets pass.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_int=_integer
        )
    except RecursionError:
        raise DamageError(f"has more than {DEPTH} levels") from None
    except DamageError:
        raise
    except ValueError as error:
        raise DamageError(f"is no JSON ({_first(error)})") from error
    _check_plain(value)
    return value


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """Plain values from TOML.

    Raises:
        DamageError: As :func:`parse_json`.
    """
    try:
        # Editors of some systems begin a text with a mark.
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = tomllib.loads(text)
    except RecursionError:
        raise DamageError(f"has more than {DEPTH} levels") from None
    except ValueError as error:
        raise DamageError(f"is not TOML: {_first(error)}") from error
    _check_plain(value)
    return value


def build(value: Any, kind: type[T], place: str = "") -> T:
    """An object of a type, by its annotations.

    Args:
        value: Plain values.
        kind: A dataclass, or a type made of such and of plain ones.
        place: Where in a file the value lies.

    Raises:
        DamageError: When types differ, something is missing, or there is more than the type has.
    """
    try:
        made = msgspec.convert(value, kind, strict=True)
    except (RecursionError, UnicodeEncodeError) as error:
        raise DamageError(f"{place}: {_first(error)}".lstrip(": ")) from error
    except msgspec.ValidationError as error:
        said, _, inner = str(error).partition(" - at `$")
        where = f"{place}{inner.rstrip('`')}".lstrip(".")
        said = said.replace("`", "").replace("Expected", "expected").replace("Object", "it is")
        raise DamageError(f"{where}: {said}" if where else said) from error
    _check_names(value, made, place)
    return made


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    """A file's values with the digest that :func:`unsealed` checks."""
    return {**body, DIGEST: _digest(body)}


def unsealed(body: Any) -> dict[str, Any]:
    """The inverse of :func:`sealed`.

    Raises:
        DamageError: When anything was changed since.
    """
    if not isinstance(body, dict):
        raise DamageError("is not what it should be: an object")
    rest = {key: value for key, value in body.items() if key != DIGEST}
    if body.get(DIGEST) != _digest(rest):
        raise DamageError("was damaged or edited after it was written")
    return rest


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        error: What is raised for one that cannot be read.
        advice: What to do then.
        limit: Bytes that it may have.
    """

    error: type[St3fxError]
    advice: str
    limit: int = 64 << 20

    def fail(self, where: object, error: Exception) -> NoReturn:
        """Raise the one error of this format.

        Args:
            where: The file.
            error: What is wrong with it.
        """
        if isinstance(error, OSError):
            raise self.error(f"cannot read {where}: {error.strerror or error}") from error
        joint = " " if str(error).startswith(("is ", "has ", "was ")) else ": "
        raise self.error(f"{where}{joint}{error}: {self.advice}") from error

    def content(self, path: str | Path) -> bytes:
        """The bytes of a file.

        Raises:
            St3fxError: Of this format: when it cannot be read, or is no regular file or too large.
        """
        try:
            return read_bytes(path, self.limit)
        except (OSError, DamageError) as error:
            self.fail(path, error)

    def json(self, text: str | bytes, where: object) -> Any:
        """What :func:`parse_json` gives, or this format's error."""
        try:
            return parse_json(text)
        except DamageError as error:
            self.fail(where, error)

    def toml(self, text: str | bytes, where: object) -> dict[str, Any]:
        """What :func:`parse_toml` gives, or this format's error."""
        try:
            return parse_toml(text)
        except DamageError as error:
            self.fail(where, error)

    def build(self, value: Any, kind: type[T], where: object, place: str = "") -> T:
        """What :func:`build` gives, or this format's error."""
        try:
            return build(value, kind, place)
        except DamageError as error:
            self.fail(where, error)

    def unsealed(self, body: Any, where: object) -> dict[str, Any]:
        """What :func:`unsealed` gives, or this format's error."""
        try:
            return unsealed(body)
        except DamageError as error:
            self.fail(where, error)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _first(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise DamageError(f"has {twice[:80]!r} twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise DamageError(f"has {name} for a number")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise DamageError(f"has a whole number of {len(digits):,} digits")
    return int(digits)


def _check_plain(value: Any) -> None:
    """Fail for what no file of ours has.

    Raises:
        DamageError: For numbers that are none or have more than 64 bits, texts that no path or
            terminal takes, dates, and more than :data:`DEPTH` levels.
    """
    level = [value]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            else:
                _check_scalar(item)
        if not inner:
            return
        level = inner
    raise DamageError(f"has more than {DEPTH} levels")


def _check_scalar(item: Any) -> None:
    if isinstance(item, str):
        if "\0" in item or (not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item)):
            raise DamageError(f"has the text {item[:40]!r}, which is none")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise DamageError(f"has {item} for a number")
    elif isinstance(item, int):
        if not -(2**63) <= item < 2**63:
            raise DamageError("has a whole number of more than 64 bits")
    elif item is not None:
        raise DamageError(f"has a {type(item).__name__}, which no value of it is")


def _check_names(given: Any, made: Any, place: str) -> None:
    """Fail for names that a dataclass does not have, wherever one stands."""
    if isinstance(given, dict):
        fields = dataclasses.is_dataclass(made)
        for key, value in given.items():
            where = f"{place}.{key}".lstrip(".")
            if not fields:
                if isinstance(made, dict):
                    _check_names(value, made[key], where)
            elif hasattr(made, key):
                _check_names(value, getattr(made, key), where)
            else:
                raise DamageError(f"{where}: no such name")
    elif isinstance(given, list):
        for index, (one, other) in enumerate(zip(given, made, strict=True)):
            _check_names(one, other, f"{place}[{index}]")
