"""Count on what a model runs: one forward, observed operator by operator, then the rules."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from st3fx.core.inputs import Example
from st3fx.core.messages import describe
from st3fx.core.state import preserved, to_eval
from st3fx.errors import InputError
from st3fx.flops.aten_rules import RULES
from st3fx.flops.collect import Collector
from st3fx.flops.observer import Observer, Step
from st3fx.flops.running import Einsums, module_stack, plain_code, plain_tensors


def observe(model: nn.Module, example: Example) -> list[Step]:
    """Run the example once in eval mode.

    Activations are fake: they have shapes and no values, so that the size of the input costs
    neither time nor memory. Weights, and what is computed from weights alone, are real. A model
    whose code branches on values runs a second time, for real.

    Args:
        model: Left as it was: buffers, attributes and random generators are set back.
        example: The call.

    Returns:
        The operators that take part, in the order of their execution.

    Raises:
        InputError: If the model refuses the example in eval mode.
    """
    with contextlib.suppress(Exception):
        return _run(model, example, FakeTensorMode(allow_non_fake_inputs=True))
    try:
        return _run(model, example, None)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} refuses the example inputs in eval mode: {describe(error)}; "
            "give inputs that its forward accepts"
        ) from error


def count(steps: list[Step], convention: str) -> Collector:
    """Give every operator to its rule; those without one are named."""
    collector = Collector(convention)
    for step in steps:
        rule = RULES.get(step.call.op)
        if rule is None:
            collector.miss(step.operator)
        else:
            collector.add(rule(step.call), step.call.operands, [step.call.out], step.module)
    return collector


def _run(model: nn.Module, example: Example, fake: FakeTensorMode | None) -> list[Step]:
    with plain_tensors(model), preserved(model), torch.no_grad(), plain_code():
        to_eval(model)
        call = pytree.tree_map_only(Tensor, _plain, (example.args, example.kwargs))
        if fake is not None:
            call = pytree.tree_map_only(Tensor, fake.from_tensor, call)
        with module_stack(model) as stack:
            observer = Observer(model, stack, fake)
            for leaf in pytree.tree_leaves(call):
                if isinstance(leaf, Tensor):
                    observer.constants.activate(leaf)
            with observer, Einsums(observer):
                model(*call[0], **call[1])
            observer.constants.settle()
    return observer.steps


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
