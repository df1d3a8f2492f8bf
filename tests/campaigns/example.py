"""What a campaign looks like; the runner's own tests run this one, which does not hold."""

from __future__ import annotations

import os
from pathlib import Path


def case(seed: int, folder: Path) -> str | None:
    """Hold for seed 0; end the process, raise and report for the next ones."""
    assert not list(folder.iterdir())
    if seed == 1:
        os._exit(3)
    if seed == 2:
        raise RuntimeError("two")
    return "three is too many" if seed == 3 else None
