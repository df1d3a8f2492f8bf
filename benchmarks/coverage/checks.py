"""Does a converted model compute what its original computes? Independent of our own verification.

A check is ``True``, ``False``, or ``None`` where the original itself refuses the call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.coverage.case import Call

Checks = dict[str, bool | None]


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors of an output, in order, through containers, dataclasses and caches."""
    found: list[Tensor] = []
    opened: dict[int, Any] = {}  # kept, so that no id is given twice
    pending = [output]
    while pending:
        leaves = pytree.tree_leaves(pending.pop())
        found += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for leaf in leaves:
            if id(leaf) not in opened and not isinstance(leaf, Tensor | nn.Module):
                opened[id(leaf)] = leaf
                pending += _inside(leaf)
    return found


def _inside(leaf: Any) -> list[Any]:
    """What an object that is no container to torch holds."""
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    is_plain = dataclasses.is_dataclass(leaf) or hasattr(leaf, "__dict__")
    return list(vars(leaf).values()) if is_plain and not callable(leaf) else []


def seed_everything(seed: int) -> None:
    """Seed torch, random and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def equal(left: Tensor | None, right: Tensor | None) -> bool:
    """Equal bits, with NaNs equal to each other."""
    if left is None or right is None:
        return left is right
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.is_sparse:
        left, right = left.coalesce().to_dense(), right.coalesce().to_dense()
    return torch.equal(left, right) or torch.equal(left.nan_to_num(), right.nan_to_num())


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Equal lists of tensors."""
    return len(left) == len(right) and all(map(equal, left, right))


@torch.no_grad()
def evaluate(model: nn.Module, call: Call) -> list[Tensor]:
    """The tensors of the eval output, detached from what later calls overwrite."""
    args, kwargs = call
    seed_everything(0)
    return [tensor.clone() for tensor in tensors_of(model.eval()(*args, **kwargs))]


def same_eval(left: nn.Module, right: nn.Module, call: Call) -> bool | None:
    """Whether both give the same eval output; ``None`` if ``left`` refuses the call."""
    with _kept_buffers(left), _kept_buffers(right):
        try:
            wanted = evaluate(left, call)
        except Exception:  # noqa: BLE001 - whatever a model raises on a size it does not take
            return None
        return same(wanted, evaluate(right, call))


@contextlib.contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers as before: their values, and the tensors too, where a forward puts others there."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                buffer.copy_(value)
                if not isinstance(module, torch.jit.ScriptModule):
                    module._buffers[name] = buffer


def same_training(left: nn.Module, right: nn.Module, call: Call, seed: int) -> bool:
    """Whether one training step gives both the same outputs, gradients and buffers."""
    outputs, wanted = training_step(left, call, seed)
    answers, given = training_step(right, call, seed)
    return same(outputs, answers) and all(
        equal(tensor, given.get(name)) for name, tensor in wanted.items()
    )


def training_step(
    model: nn.Module, call: Call, seed: int
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Outputs of a step without an optimizer, and gradients and buffers after it, by name.

    The model is as before.
    """
    args, kwargs = call
    model.train().zero_grad(set_to_none=True)
    seed_everything(seed)
    with _kept_buffers(model):
        outputs = tensors_of(model(*args, **kwargs))
        losses = [t.float().square().mean() for t in outputs if t.requires_grad and t.numel()]
        if losses:
            torch.stack(losses).sum().backward()
        after: dict[str, Tensor | None] = {name: p.grad for name, p in model.named_parameters()}
        after.update({name: buffer.clone() for name, buffer in model.named_buffers()})
    model.zero_grad(set_to_none=True)
    return [tensor.detach() for tensor in outputs], after
