"""The rows on disk: one file a library, written again after every row, one line a row."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks import record

FOLDER = record.RESULTS / "coverage"
CODE = ("st3fx", "passes", "benchmarks/coverage", "benchmarks/cases.py")
"""What a row depends on; its commit is the last that touched any of these."""


def commit() -> str:
    """The last commit of the code that rows depend on."""
    command = ["git", "log", "-1", "--format=%h", "--", *CODE]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


class Rows:
    """The rows of one library: (model, stage) -> row."""

    def __init__(self, library: str, folder: Path = FOLDER) -> None:
        """Read what is there."""
        self.library = library
        self.path = folder / f"{library}.json"
        self.models: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            document = json.loads(self.path.read_text(encoding="utf-8"))
            self.models = {row["model"]: row for row in document["rows"]}

    def get(self, model: str, stage: str) -> dict[str, Any] | None:
        """One row, if it is there."""
        row: dict[str, Any] | None = self.models.get(model, {}).get(stage)
        return row

    def put(self, model: str, stage: str, row: dict[str, Any], order: list[str]) -> None:
        """Add a row and write the file, whole or not at all."""
        self.models.setdefault(model, {"model": model})[stage] = row
        self.models = {name: self.models[name] for name in order if name in self.models}
        environment = json.dumps(record.environment())
        lines = ",\n".join(json.dumps(row) for row in self.models.values())
        text = f'{{"environment": {environment},\n"rows": [\n{lines}\n]}}\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.path)
