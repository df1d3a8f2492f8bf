"""The libraries, each in a file of its own: its models' names, and a case for each name."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.coverage.case import Case

NAMES = (
    "oddities", "transformers", "torchvision", "timm", "segmentation", "diffusers", "ultralytics",
    "open_clip",
)  # fmt: skip


def module_name(library: str) -> str:
    """The module with a library's models."""
    return f"benchmarks.coverage.libraries.{library}_cases"


def _module(library: str) -> Any:
    return importlib.import_module(module_name(library))


def names(library: str) -> list[str]:
    """Names of the models."""
    found: list[str] = _module(library).names()
    return found


def case(library: str, name: str) -> Case:
    """One model of a library."""
    found: Case = _module(library).case(name)
    return found
