"""What a benchmark compares, and how long and with what it is measured.

A variant is called in a process of its own, which prepares it there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from st3fx.errors import BenchError

TORCH_MODES = ("eager", "compile")

ROUNDS = 10
"""At least, where the number of calls allows it: quartiles of fewer ratios say little."""

DENSE = (
    "the same graph with a small random number in the place of every weight that is zero, 1 or -1 "
    "in integers"
)
"""What the baseline of a model with zeros is."""


@dataclass(frozen=True)
class BenchSettings:
    """How to measure.

    Attributes:
        batch_sizes: Samples in one call; empty: as the inputs are given, else 1.
        threads: For one call, several for a comparison, at most as many as the machine can run at
            once; empty: one for each physical core.
        seconds: Of timed calls for each variant at each batch size and number of threads.
        iterations: Timed calls instead of ``seconds``.
        warmup: Seconds of calls before, for each variant.
        providers: Of ONNX Runtime, in order.
        torch: Further rows by PyTorch: ``eager``, ``compile``.
        custom_ops: A library with operators that graphs need.
        sparse_kernels: Measure models with zeros by sparse kernels too.
        seed: Of the values of inputs and of the order in each round.
    """

    batch_sizes: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    seconds: float = 10.0
    iterations: int | None = None
    warmup: float = 2.0
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    torch: tuple[str, ...] = ()
    custom_ops: str | None = None
    sparse_kernels: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            BenchError: For a value outside its range.
        """
        for name, values in (("batch size", self.batch_sizes), ("threads", self.threads)):
            wrong = [value for value in values if value < 1]
            if wrong:
                raise BenchError(f"{name} {wrong[0]}: give a number from 1 on")
            if len(set(values)) < len(values):
                raise BenchError(f"{name} {values}: give each number once")
        if not 0 < self.seconds < float("inf"):
            raise BenchError(f"{self.seconds} seconds: give a time above 0, e.g. 10")
        if self.iterations is not None and self.iterations < 1:
            raise BenchError(f"{self.iterations} iterations: give a number from 1 on")
        if not 0 <= self.warmup < float("inf"):
            raise BenchError(f"{self.warmup} seconds of warm-up: give a time of 0 or more, e.g. 2")
        for mode in self.torch:
            if mode not in TORCH_MODES:
                raise BenchError(f"PyTorch mode {mode!r}: choose {' or '.join(TORCH_MODES)}")


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
        integers: Whether its products are of 8-bit integers.
    """

    name: str
    prepare: str
    arguments: Mapping[str, Any]
    inputs: Callable[[int], Sequence[Array]]
    sparsity: float | None = None
    bound: float | None = None
    skips_zeros: bool = False
    integers: bool = False


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
    """Says that from here on memory and loading time count."""

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
