"""What is compared: a variant is called in a process of its own, which prepares it there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Variant:
    """One row of each batch size and number of threads.

    Attributes:
        name: Of the rows.
        prepare: ``module:function``, a :class:`Prepare`.
        arguments: Its keyword arguments, as JSON values.
        inputs: Batch size -> values of the inputs, in their order.
        sparsity: Share of zeros among the weights that multiply, where it is known.
        bound: How many times as fast as without zeros it can be at most, where it is known.
        skips_zeros: Whether its kernels leave zeros out.
    """

    name: str
    prepare: str
    arguments: Mapping[str, Any]
    inputs: Callable[[int], Sequence[Array]]
    sparsity: float | None = None
    bound: float | None = None
    skips_zeros: bool = False


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be called.

    Attributes:
        call: One call with the inputs.
        runtime: What runs it, with its version.
        provider: Of ONNX Runtime; empty for other runtimes.
    """

    call: Callable[[], object]
    runtime: str
    provider: str = ""


class Mark(Protocol):
    """From here on memory and loading time count."""

    def __call__(self, held: int = 0) -> None:
        """``held``: bytes of the model that are in memory already."""


class Prepare(Protocol):
    """Loads a variant. It calls ``mark`` when all that is not the model has been imported."""

    def __call__(
        self, inputs: Sequence[Array], threads: int, mark: Mark, **arguments: Any
    ) -> Prepared:
        """Give the model back with its inputs bound to it."""


def locate(name: str) -> Any:
    """The object that ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
