"""What the doctor found: plain data that turns itself into JSON values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "absent", "failed"]


@dataclass(frozen=True)
class Finding:
    """What came of one probe.

    Attributes:
        section: The heading it is listed under.
        name: What was tried.
        status: ``ok``; ``absent``: not on this machine, which may be as it should; ``failed``: it
            is there and does not work.
        required: Whether the main path needs it.
        detail: Versions, sizes, or what went wrong.
        consequence: What does not work without it; empty if it is ok.
        advice: What to do; empty if it is ok or there is nothing to do.
        seconds: How long it took.
    """

    section: str
    name: str
    status: Status
    required: bool
    detail: str
    consequence: str = ""
    advice: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """Everything that the doctor found, in the order of the table of probes.

    Attributes:
        version: Of st3fx.
        findings: One for each probe.
        seconds: For all of them.
    """

    version: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def works(self) -> bool:
        """Whether the main path does: convert, train, fold, export, analyze."""
        return all(item.status == "ok" for item in self.findings if item.required)

    def to_dict(self) -> dict[str, Any]:
        """This diagnosis as JSON values."""
        return {
            "version": self.version,
            "works": self.works,
            "findings": [dataclasses.asdict(item) for item in self.findings],
            "seconds": self.seconds,
        }
