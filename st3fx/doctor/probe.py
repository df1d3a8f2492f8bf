"""A probe: one thing to try, with what it means when it does not work."""

from __future__ import annotations

from dataclasses import dataclass


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
