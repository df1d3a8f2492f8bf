"""What a workflow tells whoever waits for it: the name of each stage as it begins."""

from __future__ import annotations


def silent(stage: str) -> None:
    """Tell nobody."""
