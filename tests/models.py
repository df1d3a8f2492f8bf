"""Files with models in them, as a user would write them: small, so that tests are fast."""

from __future__ import annotations

import textwrap
from pathlib import Path

TINY = """
    import torch
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    def example_inputs():
        return torch.randn(2, 3, 8, 8)
"""
"""One class without arguments, and inputs for it."""


def write(folder: Path, name: str, text: str) -> Path:
    """Write ``text``, its common indentation taken off, to ``folder/name``."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path
