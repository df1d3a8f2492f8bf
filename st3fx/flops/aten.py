"""Counts on what a model runs: one forward is observed operator by operator, and rules count.

For a count modules run as plain code: nothing is fused or compiled, and einsums are seen whole.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from st3fx.errors import InputError, describe
from st3fx.flops.aten_rules import RULES
from st3fx.flops.collect import Collector
from st3fx.flops.observer import MATRICES, Observer, Step
from st3fx.modules.state import preserved, to_eval
from st3fx.plan.example import Example
from st3fx.provenance import names_kept


@contextlib.contextmanager
def plain_code() -> Iterator[None]:
    """Without the fused encoder layers of torch.nn, one operator each, and without compilation."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class Einsums(TorchFunctionMode):
    """Shows einsums to an observer before they are taken apart, and the weights of products."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in MATRICES and len(args) > 1:
            self._observer.fix_weight(args[1])
        if func not in _EINSUM or len(args) < 2 or not isinstance(args[0], str):
            return func(*args, **kwargs)
        operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
        path = kwargs.get("path") or (() if func is not torch.einsum else _path(args[0], operands))
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, operands)):
            return func(*args, **kwargs)  # vmap: the shapes are those of one sample
        return self._observer.einsum(lambda: func(*args, **kwargs), args[0], operands, path)


_EINSUM = (torch.einsum, torch.ops.aten.einsum, torch.ops.aten.einsum.default)


def _path(equation: str, operands: Sequence[Tensor]) -> tuple[int, ...]:
    """The order in which torch multiplies, where it has opt_einsum to choose one."""
    settings = torch.backends.opt_einsum
    if len(operands) < 3 or not settings.enabled or not settings.is_available():
        return ()
    chosen = settings.get_opt_einsum().contract_path(
        equation, *operands, optimize=settings.strategy
    )[0]
    return tuple(itertools.chain.from_iterable(chosen))


@contextlib.contextmanager
def plain_tensors(model: nn.Module) -> Iterator[None]:
    """Outside of inference_mode, with copies of the tensors of a model that were made under it.

    Such tensors refuse to be written to outside of it, and operators on them are not taken apart.
    """
    with torch.inference_mode(mode=False):
        copies: dict[int, Tensor] = {}
        before: list[tuple[dict[str, Any], str, Tensor]] = []
        for module in model.modules():
            tables: list[dict[str, Any]] = [module._parameters, module._buffers]
            for held in tables:
                for name, tensor in held.items():
                    if tensor is not None and tensor.is_inference():
                        before.append((held, name, tensor))
        try:
            for held, name, tensor in before:
                held[name] = copies.setdefault(id(tensor), _copy(tensor))
            yield
        finally:
            for held, name, tensor in before:
                held[name] = tensor


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, requires_grad=False)
    return copy


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


def count(steps: list[Step], convention: str, block: int | None = None) -> Collector:
    """Give every operator to its rule; those without one are named.

    Args:
        steps: What a model did.
        convention: What counts.
        block: How many consecutive inputs are counted as a block.
    """
    collector = Collector(convention, block)
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
        stack = [""]
        observer = Observer(model, stack, fake)
        for leaf in pytree.tree_leaves(call):
            if isinstance(leaf, Tensor):
                observer.constants.activate(leaf)
        with names_kept(model, stack), observer, Einsums(observer):
            model(*call[0], **call[1])
        observer.constants.settle()
    return observer.steps


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
