"""A probe: one thing to try, with what it means when it does not work; and what came of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


class AbsentError(Exception):
    """Raised by a probe for what is not on this machine, which may be as it should be."""

    def __init__(self, detail: str, advice: str = "") -> None:
        super().__init__(detail)
        self.advice = advice


@dataclass(frozen=True)
class Probe:
    """One thing to try.

    Attributes:
        section: The heading it is listed under.
        name: What is tried.
        target: ``module:function``; the function does it and gives back one line. It raises
            :class:`AbsentError` for what is not here, and anything else for what is broken.
        consequence: What does not work without it.
        advice: What to do when it is broken.
        required: Whether the main path needs it.
        limit: Seconds after which it counts as hanging.
    """

    section: str
    name: str
    target: str
    consequence: str
    advice: str = ""
    required: bool = False
    limit: float = 60.0


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
