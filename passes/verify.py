"""Verify: the converted model computes what the original computes, bit for bit, before it is used.

Original and converted model are the same modules with the sparse forwards taken out and put in, so
that verification holds one more copy of the gradients and no more of the weights. Compared are output and
gradients in train mode under two seeds, the output in eval mode, all of it before the first threshold;
the eval output with one more sample; and, at a trial threshold, the eval output against the original
forward over folded weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.forward import SparseForward
from st3fx.inputs import Example
from st3fx.passes.fold import clean
from st3fx.state import preserved, seed_everything

SEEDS = (0, 1)


class _Mismatch(Exception):
    """Where converted and original differ."""


def differs(
    model: nn.Module,
    example: Example,
    forwards: Sequence[SparseForward],
    trial: dict[str, Tensor],
) -> str | None:
    """Compare a converted model with its original.

    Args:
        model: With ``forwards`` installed; left as it was.
        example: A call as in training.
        forwards: All sparse forwards of the model.
        trial: State tensors -> the value for the trial threshold, by full name.

    Returns:
        What differs, or ``None``.
    """
    try:
        for seed in SEEDS:
            _compare_training(model, example, forwards, seed)
        _compare_eval(model, example, forwards, "eval output")
        larger = example.larger_batch()
        if larger is not None:
            _compare_eval(model, larger, forwards, "eval output with one more sample")
        _compare_trial(model, example, forwards, trial)
    except _Mismatch as mismatch:
        return str(mismatch)
    return None


@contextlib.contextmanager
def original_forwards(forwards: Sequence[SparseForward]) -> Iterator[None]:
    """The model as it was before the conversion."""
    for forward in forwards:
        forward.uninstall()
    try:
        yield
    finally:
        for forward in forwards:
            forward.install()


def _run(model: nn.Module, example: Example, training: bool, seed: int) -> Any:
    seed_everything(seed)
    return model.train(training)(*example.args, **example.kwargs)


def _compare_training(
    model: nn.Module, example: Example, forwards: Sequence[SparseForward], seed: int
) -> None:
    expected, gradients, buffers = {}, {}, {}
    with preserved(model), original_forwards(forwards), _own_gradients(model):
        expected = _detached(_forward_backward(model, example, seed))
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        buffers = {n: b.clone() for n, b in model.named_buffers()}
    with preserved(model), _own_gradients(model):
        _require_equal(expected, _forward_backward(model, example, seed), f"train output, {seed=}")
        for name, parameter in model.named_parameters():
            if not _equal(parameter.grad, gradients.pop(name, None)):
                raise _Mismatch(f"gradient of {name}, {seed=}")
        for name, buffer in model.named_buffers():
            if not _equal(buffer, buffers[name]):
                raise _Mismatch(f"buffer {name} after a training step, {seed=}")


def _forward_backward(model: nn.Module, example: Example, seed: int) -> Any:
    with torch.enable_grad():
        output = _run(model, example, True, seed)
        losses = [
            _weighted_sum(leaf)
            for leaf in pytree.tree_leaves(output)
            if isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        if losses:
            torch.stack(losses).sum().backward()
    return output


def _weighted_sum(tensor: Tensor) -> Tensor:
    """A loss that no normalisation makes constant: each element with another weight."""
    weights = torch.arange(tensor.numel(), dtype=torch.float32, device=tensor.device).mul_(0.7).sin_()
    return (tensor.flatten().float() * weights).mean() * tensor.numel() ** 0.5


def _compare_eval(
    model: nn.Module, example: Example, forwards: Sequence[SparseForward], what: str
) -> None:
    with preserved(model), torch.no_grad():
        with original_forwards(forwards):
            try:
                expected = _run(model, example, False, 0)
            except Exception:
                return  # no call that the original accepts in eval mode
        _require_equal(expected, _run(model, example, False, 0), what)


def _compare_trial(
    model: nn.Module,
    example: Example,
    forwards: Sequence[SparseForward],
    trial: dict[str, Tensor],
) -> None:
    """At a threshold, the converted model must compute with exactly the folded weights."""
    buffers = dict(model.named_buffers())
    direct = [item for f in forwards for item in f.held if item.compute is None]
    if any(item.compute is not None for f in forwards for item in f.held):
        return  # folding a computed weight replaces modules; fold checks those
    with preserved(model), torch.no_grad():
        for name, value in trial.items():
            buffers[name].copy_(value)
        try:
            sparse = _run(model, example, False, 0)
        except Exception:
            return
        latent = [item.weight() for item in direct]
        folded = {item.site: clean(item.effective()) for item in direct}
        for item in direct:
            item.put(folded[item.site])
        try:
            with original_forwards(forwards):
                expected = _run(model, example, False, 0)
        finally:
            for item, weight in zip(direct, latent, strict=True):
                item.put(weight)
    _require_equal(expected, sparse, "eval output at a trial threshold")


@contextlib.contextmanager
def _own_gradients(model: nn.Module) -> Iterator[None]:
    """Empty gradients inside, the present ones back afterwards."""
    saved = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, grad in saved:
            parameter.grad = grad


def _detached(output: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.detach(), output)


def _require_equal(expected: Any, actual: Any, what: str) -> None:
    wanted, spec = pytree.tree_flatten(expected)
    given, actual_spec = pytree.tree_flatten(actual)
    if spec != actual_spec:
        raise _Mismatch(f"structure of the {what}")
    for left, right in zip(wanted, given, strict=True):
        if not _equal(left, right):
            raise _Mismatch(what)


def _equal(left: Any, right: Any) -> bool:
    """``torch.equal`` with NaNs equal to each other; other values by identity or ``==``."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return left is right or bool(left == right)
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if torch.equal(left, right):
        return True
    return bool(((left == right) | (left.isnan() & right.isnan())).all())
