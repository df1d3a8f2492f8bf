"""metrics.jsonl: one JSON object per row, appended; cut back to a checkpoint at resumption.

Each row ends with a digest of it and of the row before, which every reader checks: a row that was
changed, lost, doubled or moved is noticed. A log that ends earlier is one of an earlier moment.

Loss and right answers are summed on the device and read only at a row.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from st3fx.errors import LogWarning, TrainError
from st3fx.files.atomic import replace_file
from st3fx.files.reading import DIGEST, DamageError, Format
from st3fx.training.report import BadRow, EvalRow, TrainRow

FILE = Format(TrainError, "put back the file that st3fx train wrote")

_KINDS: dict[str, type[TrainRow | EvalRow | BadRow]] = {
    "train": TrainRow, "eval": EvalRow, "bad": BadRow,
}  # fmt: skip


class Log:
    """An append-only file of rows, open only while it is written to."""

    def __init__(self, path: Path) -> None:
        """Use ``path``; :meth:`append` makes it."""
        self.path = path
        self._last: str | None = None  # digest of the last row

    def append(self, row: dict[str, Any]) -> None:
        """Write one row.

        Raises:
            TrainError: When it cannot be written, e.g. on a full disk.
        """
        if self._last is None:
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
            self._last = _parts(lines[-1])[1] if lines else ""
        body = json.dumps({key: _rounded(value) for key, value in row.items()}).encode()
        line, self._last = _linked(body, self._last)
        try:
            with self.path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise TrainError(f"cannot write {self.path}: {error.strerror}") from error

    def commit(self) -> tuple[int, str]:
        """Make sure that all rows are on the disk; how many bytes they are, and their SHA-256."""
        if not self.path.exists():
            return 0, _sha256(b"")
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
            content = file.read()
            return len(content), _sha256(content)

    def cut(self, size: int, digest: str, *, accepted: bool = False) -> None:
        """Forget what was written after :meth:`commit` gave ``size`` and ``digest``.

        Args:
            size: In bytes.
            digest: SHA-256 of so many.
            accepted: Whether a log that was changed is taken as it is.

        Raises:
            TrainError: When the file is shorter, or begins otherwise: somebody else changed it.
        """
        now = self.path.stat().st_size if self.path.exists() else 0
        if now < size and not accepted:
            raise TrainError(
                f"{self.path} is shorter than it was at the checkpoint ({now} of {size} bytes): "
                "put it back, or go on without its rows by --accept-changes"
            )
        self._last = None
        if _sha256(self._beginning(size)) == digest:
            if now > size:
                os.truncate(self.path, size)
        elif accepted:
            self._rewrite(size)
        else:
            raise TrainError(
                f"{self.path} was damaged or edited since the checkpoint, as its digest says: put "
                "it back, or go on with it by --accept-changes"
            )

    def _rewrite(self, size: int) -> None:
        """Take the rows in so many bytes as they are: from now on they are those that count.

        Raises:
            TrainError: When one is no row of a log: of that it is said now, not after the training.
        """
        lines, last = [], ""
        for number, line in enumerate(self._beginning(size).split(b"\n")[:-1], 1):
            self._row(line, number)
            text, last = _linked(_parts(line)[0], last)
            lines.append(text)
        try:
            replace_file(self.path, lambda file: file.write(b"".join(lines)))
        except OSError as error:
            raise TrainError(f"cannot write {self.path}: {error.strerror}") from error

    def _beginning(self, size: int) -> bytes:
        if not size or not self.path.exists():
            return b""
        return FILE.content(self.path)[:size]

    def rows(self) -> list[dict[str, Any]]:
        """All rows, oldest first.

        A last line without an end is what a kill leaves: it is left out, and said.

        Raises:
            TrainError: When a row is no row of a log, or is not as it was written.
        """
        if not self.path.exists():
            return []
        *lines, rest = FILE.content(self.path).split(b"\n")
        if rest:
            text = f"the last line of {self.path} is not whole, as after a kill: it is left out"
            warnings.warn(LogWarning(text), stacklevel=2)
        rows, last = [], ""
        for number, line in enumerate(lines, 1):
            rows.append(self._row(line, number))
            body, _ = _parts(line)
            again, last = _linked(body, last)
            if again != line + b"\n":
                text = "was damaged or edited after it was written"
                FILE.fail(f"{self.path}, line {number},", DamageError(text))
        return rows

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"{self.path}, line {number}"
        row = FILE.json(line, where)
        if isinstance(row, dict):
            row.pop(DIGEST, None)
        kind = row.get("kind") if isinstance(row, dict) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            FILE.fail(where, DamageError("is no row of a log"))
        FILE.build({key: row[key] for key in row if key != "kind"}, _KINDS[kind], where)
        found: dict[str, Any] = row
        return found


_END = re.compile(rb', "' + DIGEST.encode() + rb'": "([0-9a-f]{16})"\}$')


def _parts(line: bytes) -> tuple[bytes, str]:
    """A row's JSON without its digest, and that; empty where it has none."""
    found = _END.search(line)
    return (line, "") if found is None else (line[: found.start()] + b"}", found[1].decode())


def _linked(body: bytes, before: str) -> tuple[bytes, str]:
    """A line of the file, and its digest, which is of the one before too."""
    digest = _sha256(before.encode() + body)[:16]
    return body[:-1] + f', "{DIGEST}": "{digest}"}}\n'.encode(), digest


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _rounded(value: Any) -> Any:
    """Six significant digits: more would be noise, and the file is read by people too."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


class Running:
    """Sums that stay on the device, so that no step waits for them."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Begin at 0."""
        self._accelerator = accelerator
        self._sums = torch.zeros(2, device=accelerator.device)  # loss, right ones
        self.samples = 0
        self.classes = 0  # of the last batch's logits

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Take in one batch of this process."""
        count = targets.shape[0]
        labels = targets if targets.dtype == torch.int64 else targets.argmax(1)
        right = (logits.argmax(1) == labels).sum() * (count / max(1, labels.numel()))
        self._sums += torch.stack([loss.detach().float() * count, right])
        self.samples += count
        self.classes = logits.shape[1]

    def read(self) -> tuple[float, float]:
        """Mean loss and share of right ones, over all processes; begins at 0 again."""
        sums = torch.cat([self._sums, torch.tensor([self.samples], device=self._sums.device)])
        loss, right, samples = self._accelerator.reduce(sums, "sum").tolist()
        self._sums.zero_()
        self.samples = 0
        return (loss / samples, right / samples) if samples else (0.0, 0.0)

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint keeps."""
        return {"sums": self._sums.clone(), "samples": self.samples}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self._sums.copy_(state["sums"])
        self.samples = state["samples"]
