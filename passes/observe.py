"""Observe: run the example once under a dispatch-level tracker and see what multiplies.

The tracker follows every parameter through views and computations into convolutions and matrix
products. It works on every model that runs, whether or not it can be traced, and says for each
multiplication which module's own forward issued it. It also notes how each module is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from st3fx.core.calls import CallSpec
from st3fx.core.inputs import Example
from st3fx.core.settled import noted
from st3fx.core.state import preserved
from st3fx.errors import InputError, PlanError
from st3fx.passes.tracker import Observation, Tracker


@contextlib.contextmanager
def _watched_calls(model: nn.Module, observation: Observation) -> Iterator[list[str]]:
    """Keep the stack of running modules, and note how each is called."""
    names = {id(module): name for name, module in model.named_modules()}
    stack = [""]
    original = nn.Module.__call__

    def watch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module), stack[-1])
        if id(module) in names:
            _note_call(observation, name, module, args, kwargs)
        stack.append(name)
        try:
            return original(module, *args, **kwargs)
        finally:
            stack.pop()

    nn.Module.__call__ = watch  # type: ignore[method-assign]
    try:
        yield stack
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


def _note_call(
    observation: Observation, name: str, module: nn.Module, args: Any, kwargs: Any
) -> None:
    known = observation.calls.setdefault(name, [])
    try:
        call = (module.training, CallSpec(module, args, kwargs))
    except (TypeError, ValueError):
        return  # the forward itself will complain, or has no signature that could be matched
    if call not in known:
        known.append(call)


def observe(model: nn.Module, example: Example) -> Observation:
    """Run the example in train mode, and in eval mode without gradients.

    Args:
        model: Left as it was: buffers, attributes and random generators are set back.
        example: A call as in training.

    Raises:
        InputError: If the model refuses the example in train mode.
        PlanError: If it writes to a weight that multiplies.
    """
    observation = Observation()
    with _watched_calls(model, observation) as stack:
        for training in (True, False):
            tracker = Tracker(model, observation, stack, training)
            tracker.mark_inputs(example)
            try:
                with preserved(model), torch.set_grad_enabled(training), tracker:
                    with noted(model.train(training)) as left:
                        model(*example.args, **example.kwargs)
                    observation.left[training] = left
            except Exception as error:
                if training:
                    raise InputError(_refusal(model, error)) from error
                # Some models take other inputs in eval mode; training is what counts.
            finally:
                written = tracker.written.set_back()
            observation.written += written
    _require_still_weights(model, observation)
    return observation


def _require_still_weights(model: nn.Module, observation: Observation) -> None:
    multiplied = observation.multiplied()
    moved = [name for name in observation.written if name in multiplied]
    if moved:
        raise PlanError(
            f"{type(model).__name__} writes to {moved[0]} while it runs, which may become sparse: "
            "a threshold would meet other values in each call; switch that off in the model"
        )


def _refusal(model: nn.Module, error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    hint = ""
    if "more than 1 value per channel" in str(error):
        hint = " (batch norm needs a larger batch here)"
    return (
        f"{type(model).__name__} refuses the example inputs in train mode: "
        f"{type(error).__name__}: {reason[0]}{hint}; give inputs that its forward accepts"
    )
