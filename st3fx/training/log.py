"""metrics.jsonl: one JSON object per row, appended; cut back to a checkpoint at resumption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from st3fx.errors import TrainError


class Log:
    """An append-only file of rows, open only while it is written to."""

    def __init__(self, path: Path) -> None:
        """Use ``path``; :meth:`append` makes it."""
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one row.

        Raises:
            TrainError: When it cannot be written, e.g. on a full disk.
        """
        line = json.dumps({key: _rounded(value) for key, value in row.items()})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise TrainError(f"cannot write {self.path}: {error.strerror}") from error

    def commit(self) -> int:
        """Make sure that all rows are on the disk; how many bytes they are."""
        if not self.path.exists():
            return 0
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def cut(self, size: int) -> None:
        """Forget what was written after :meth:`commit` gave ``size``.

        Raises:
            TrainError: When the file is shorter than that: somebody else changed it.
        """
        now = self.path.stat().st_size if self.path.exists() else 0
        if now < size:
            raise TrainError(
                f"{self.path} is shorter than it was at the checkpoint ({now} of {size} bytes): "
                "put it back"
            )
        if now > size:
            os.truncate(self.path, size)

    def rows(self) -> list[dict[str, Any]]:
        """All rows, oldest first."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


def _rounded(value: Any) -> Any:
    """Six significant digits: more would be noise, and the file is read by people too."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
