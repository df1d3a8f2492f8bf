"""Calls of a model as calls of its exported file, and a user's score of one.

A file knows no structures, defaults or devices: it has inputs with names, and a batch that may be
fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.errors import QuantizeError
from st3fx.export.batch import batched
from st3fx.export.call import Call
from st3fx.export.export_result import ExportResult
from st3fx.passes.onnx.values import Array
from st3fx.plan.example import Example
from st3fx.quantization.calibrate import Feed
from st3fx.quantization.measure import Run


class Calls:
    """Turns calls of a model into inputs of its file."""

    def __init__(self, model: nn.Module, exported: ExportResult) -> None:
        self._model, self._ports = model, exported.inputs
        sizes = (size for port in exported.inputs for size in port.shape[:1])
        batch = next((size for size in sizes if isinstance(size, int)), 1)
        self._batch = None if exported.dynamic_batch else batch

    def parts(self, samples: int) -> int:
        """How many calls so many samples are, where that is more than they are given in.

        Raises:
            QuantizeError: When they are too few for the batch of the file.
        """
        if self._batch is None:
            return 1
        if samples < self._batch:
            raise QuantizeError(
                f"the file takes {self._batch} samples at once, and batches have {samples}: give "
                "larger ones (--batch-size)"
            )
        return samples // self._batch

    def feed(self, example: Example) -> Feed:
        """The inputs of one call.

        Raises:
            QuantizeError: When they are not those that the model was exported with.
        """
        return self._parts(example, whole=True)[0]

    def feeds(
        self, batch: Any, size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[slice, Feed]]:
        """The inputs of one call, cut into calls of fewer samples, with their places in it.

        Args:
            batch: As the model is called.
            size: Samples in each; those of the file where its batch is fixed.
            start: The first sample.
            stop: The one behind the last.
        """
        feed, has = self._parts(Example.of(batch, None, self._model), whole=False)
        samples = max((len(array) for name, array in feed.items() if has[name]), default=1)
        if not samples:
            raise QuantizeError("a batch has no sample: leave it out")
        size, stop = self._batch or size, samples if stop is None else min(stop, samples)
        for low in range(start, stop, size):
            part = slice(low, min(low + size, stop))
            if self._batch is None or part.stop - low == size:
                yield part, {k: v[part] if has[k] else v for k, v in feed.items()}

    def _parts(self, example: Example, *, whole: bool) -> tuple[dict[str, Array], dict[str, bool]]:
        """Inputs by name, and which have a batch; ``whole``: the file's own, if it is fixed."""
        call = Call.of(self._model, example)
        names = [port.name for port in self._ports]
        has = batched(call.tensors)
        shapes = [
            ("any", *port.shape[1:]) if is_cut and not whole else port.shape
            for port, is_cut in zip(self._ports, has, strict=False)
        ]
        fits = len(call.tensors) == len(names) and all(map(_fits, call.tensors, shapes))
        if not fits:
            given = " and ".join(shape_text(tensor.shape) for tensor in call.tensors)
            wanted = " and ".join(shape_text(port.shape) for port in self._ports)
            raise QuantizeError(
                f"a batch of {given} does not fit the model, which takes {wanted}: give what it is "
                "called with, without targets"
            )
        arrays = [tensor.numpy() for tensor in call.tensors]
        return (
            dict(zip(names, arrays, strict=True)),
            dict(zip(names, has, strict=True)),
        )


def _fits(tensor: Tensor, shape: Sequence[int | str]) -> bool:
    return tensor.dim() == len(shape) and all(
        isinstance(size, str) or size == there
        for size, there in zip(shape, tensor.shape, strict=True)
    )


def shape_text(shape: Sequence[int | str]) -> str:
    """``batchx3x32x32``."""
    return "x".join(map(str, shape)) or "a number"


def samples_of(feed: Feed) -> int:
    """How many samples a call has: those of its first input."""
    return len(next(iter(feed.values())))


class UsersScore:
    """What a user's function says of a file."""

    samples: int | None = None

    def __init__(self, evaluate: Callable[[Callable[..., Any]], float], calls: Calls) -> None:
        self._evaluate, self._calls = evaluate, calls

    def __call__(self, run: Run) -> float:
        """Let it call the file as it would the model."""

        def predict(*args: Any, **kwargs: Any) -> Any:
            outputs = run(self._calls.feed(Example(args, kwargs)))
            tensors = tuple(torch.from_numpy(array.copy()) for array in outputs.values())
            return tensors[0] if len(tensors) == 1 else tensors

        value = float(self._evaluate(predict))
        if not 0 <= value <= 1:
            raise QuantizeError(f"evaluate gave {value:g}: it must give a share, from 0 to 1")
        return value
