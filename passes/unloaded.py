"""Observe a model that has no values, by shapes alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from st3fx.core.inputs import Example
from st3fx.errors import InputError
from st3fx.passes import convert as stages


def observe(conversion: stages.Conversion) -> None:
    """The stage *observe* of :mod:`st3fx.passes.convert` for a model on the meta device.

    Raises:
        InputError: If the forward asks for values, or as there.
    """
    conversion.examples = tuple(example.on_meta() for example in conversion.examples)
    with fakes(conversion.model, conversion.examples) as examples:
        source = dict(conversion.model.named_parameters())
        faked = dataclasses.replace(conversion, examples=examples, source=source)
        try:
            stages.observe(faked)
        except InputError as error:
            if not isinstance(error.__cause__, DataDependentOutputException):
                raise
            raise InputError(
                f"{type(conversion.model).__name__} is on the meta device, and its forward "
                f"branches on values ({error.__cause__.func}): give it values first, with "
                "to_empty() and its weights"
            ) from error
    conversion.observation = faked.observation


@contextlib.contextmanager
def fakes(model: nn.Module, examples: tuple[Example, ...]) -> Iterator[tuple[Example, ...]]:
    """Fake tensors in place of all tensors of ``model``, inside; gives the same calls with fakes.

    Libraries ask whether a tensor is fake before they branch on its values; of one that is merely
    on the meta device they would ask for these.
    """
    mode = FakeTensorMode()
    twins: dict[int, Tensor] = {}
    saved = [
        (table, name, tensor)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name, tensor in table.items()
        if tensor is not None
    ]
    lists = [(m, m._flat_weights) for m in model.modules() if isinstance(m, nn.RNNBase)]
    for table, name, tensor in saved:
        table[name] = twins.setdefault(id(tensor), mode.from_tensor(tensor))  # type: ignore[assignment]
    for module, weights in lists:
        module._flat_weights = [
            weight if weight is None else twins[id(weight)] for weight in weights
        ]
    try:
        given = tuple(example.changed(mode.from_tensor) for example in examples)
        with mode:
            yield given
    finally:
        for table, name, tensor in saved:
            table[name] = tensor  # type: ignore[assignment]
        for module, weights in lists:
            module._flat_weights = weights
