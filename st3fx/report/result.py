"""What a report has in it: plain data that turns itself into JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ReportResult:
    """A written report.

    Attributes:
        path: The page.
        size: Bytes of it.
        name: Of the model.
        sections: Name of each section -> empty, or what gives it where there was nothing to show.
        pictures: PNG files.
    """

    path: Path
    size: int
    name: str
    sections: dict[str, str]
    pictures: tuple[Path, ...] = ()

    @property
    def filled(self) -> tuple[str, ...]:
        """Sections that show something."""
        return tuple(name for name, missing in self.sections.items() if not missing)

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {
            "path": str(self.path),
            "bytes": self.size,
            "model": self.name,
            "sections": {
                name: {"filled": not missing, "missing": missing or None}
                for name, missing in self.sections.items()
            },
            "pictures": [str(path) for path in self.pictures],
        }
