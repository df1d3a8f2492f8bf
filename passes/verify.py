"""Verify: the converted model computes what the original computes, bit for bit, before it is used.

Original and converted model are the same modules with the sparse forwards taken out and put in, so
that verification holds no second copy of the weights. Compared are

1. output, gradients and buffers in train mode under two seeds, before the first threshold;
2. the output in eval mode, and with one more sample;
3. the eval output at a trial threshold, against the original forward over folded weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.calls import is_value
from st3fx.forward import SparseForward
from st3fx.inputs import Example
from st3fx.passes.fold import clean
from st3fx.state import preserved, seed_everything

SEEDS = (0, 1)


class _MismatchError(Exception):
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
        if _compare_eval(model, example, forwards, "eval output"):
            _compare_trial(model, example, forwards, trial)
        larger = example.larger_batch()
        if larger is not None:
            _compare_eval(model, larger, forwards, "eval output with one more sample")
    except _MismatchError as mismatch:
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


@contextlib.contextmanager
def _converted(what: str) -> Iterator[None]:
    """What the original could do and the converted model cannot is a mismatch."""
    try:
        yield
    except Exception as error:
        raise _MismatchError(f"{what} ({type(error).__name__} in the converted model)") from error


def _compare_training(
    model: nn.Module, example: Example, forwards: Sequence[SparseForward], seed: int
) -> None:
    expected, gradients, buffers = {}, {}, {}
    with preserved(model), original_forwards(forwards), _own_gradients(model):
        expected = _detached(_forward_backward(model, example, seed))
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        buffers = {n: b.clone() for n, b in model.named_buffers()}
    with preserved(model), _own_gradients(model):
        with _converted("train output"):
            output = _forward_backward(model, example, seed)
        _require_equal(expected, output, f"train output, {seed=}")
        for name, parameter in model.named_parameters():
            if not _equal(parameter.grad, gradients.pop(name, None)):
                raise _MismatchError(f"gradient of {name}, {seed=}")
        for name, buffer in model.named_buffers():
            if not _equal(buffer, buffers[name]):
                raise _MismatchError(f"buffer {name} after a training step, {seed=}")


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
    weights = (
        torch.arange(tensor.numel(), dtype=torch.float32, device=tensor.device).mul_(0.7).sin_()
    )
    loss: Tensor = (tensor.flatten().float() * weights).mean() * tensor.numel() ** 0.5
    return loss


def _compare_eval(
    model: nn.Module, example: Example, forwards: Sequence[SparseForward], what: str
) -> bool:
    """Compare one eval output; False if the original itself refuses this call in eval mode."""
    with preserved(model), torch.no_grad():
        with original_forwards(forwards):
            try:
                expected = _run(model, example, False, 0)
            except Exception:  # noqa: BLE001 - whatever a user's forward raises
                return False
        with _converted(what):
            output = _run(model, example, False, 0)
        _require_equal(expected, output, what)
    return True


def _compare_trial(
    model: nn.Module,
    example: Example,
    forwards: Sequence[SparseForward],
    trial: dict[str, Tensor],
) -> None:
    """At a threshold, the converted model must compute with exactly the folded weights."""
    held = [item for forward in forwards for item in forward.held]
    if any(item.compute is not None for item in held):
        return  # only replacing modules, as fold does, gives the original a static weight
    what = "eval output at a trial threshold"
    buffers = dict(model.named_buffers())
    with preserved(model), torch.no_grad():
        for name, value in trial.items():
            buffers[name].copy_(value)
        with _converted(what):
            sparse = _run(model, example, False, 0)
        latent = [item.weight() for item in held]
        folded = {item.site: clean(item.effective()) for item in held}
        for item in held:
            item.put(folded[item.site].requires_grad_(item.weight().requires_grad))
        try:
            with original_forwards(forwards):
                expected = _run(model, example, False, 0)
        finally:
            for item, weight in zip(held, latent, strict=True):
                item.put(weight)
    _require_equal(expected, sparse, what)


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
        raise _MismatchError(f"structure of the {what}")
    for left, right in zip(wanted, given, strict=True):
        if not _equal(left, right):
            raise _MismatchError(what)


def _equal(left: Any, right: Any) -> bool:
    """``torch.equal`` with NaNs equal to each other; objects that are no values by their type."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and (not is_value(left) or bool(left == right))
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if torch.equal(left, right):
        return True
    return bool(((left == right) | (left.isnan() & right.isnan())).all())
