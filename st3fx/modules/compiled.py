"""What runs when torch.compile or torch.export traces a model, and not when its result runs."""

from __future__ import annotations

import itertools
import weakref
from typing import Protocol

import torch


class Compiled(Protocol):
    """Where the training of a model stands that may be compiled."""

    def before_compiling(self) -> None:
        """Bring the thresholds up to date, which compiled code cannot do."""


_KEYS = itertools.count()
_KNOWN: weakref.WeakValueDictionary[int, Compiled] = weakref.WeakValueDictionary()


def key_of(run: Compiled) -> int:
    """A number by which traced code names a run: it is told of constants alone."""
    key = next(_KEYS)
    _KNOWN[key] = run
    return key


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def before_compiling(key: int) -> None:
    """Tell a run that its model is traced, now.

    Args:
        key: Of the run.
    """
    _KNOWN[key].before_compiling()
