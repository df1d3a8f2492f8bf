"""Verify: the converted model computes what the original computes, bit for bit, before it is used.

Original and converted model are the same modules with the sparse forwards taken out and put in, and
gradients are kept as digests, so that verification holds no second copy of either. Compared are

1. output and buffers in train mode under two seeds, and gradients under the first, before the
   first threshold;
2. the output in eval mode, and with one more sample;
3. at a trial threshold: the eval output, and output and gradients of a training step, against the
   original forward over the effective weights as they are (with computed weights: the eval output
   against the folded model's).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.core.forward import Held, SparseForward
from st3fx.core.inputs import Example
from st3fx.core.state import copied, deterministic, preserved, preserved_rng, seed_everything
from st3fx.passes.equality import detached, digest, equal, first_difference
from st3fx.passes.fold import PREFIX, clean, effective, fold, projections

SEEDS = (0, 1)


class Difference(NamedTuple):
    """Where a converted model differs from its original.

    Attributes:
        what: In words.
        site: The site whose gradient alone differs, if that is it.
    """

    what: str
    site: str | None = None


class _MismatchError(Exception):
    """Carries a :class:`Difference` out of a comparison."""

    def __init__(self, what: str, site: str | None = None) -> None:
        super().__init__(what)
        self.difference = Difference(what, site)


@deterministic()
def differs(
    model: nn.Module,
    example: Example,
    forwards: Sequence[SparseForward],
    trial: dict[str, Tensor],
) -> Difference | None:
    """Compare a converted model with its original, with deterministic cuDNN kernels.

    Args:
        model: With ``forwards`` installed; left as it was.
        example: A call as in training.
        forwards: All sparse forwards of the model.
        trial: State tensors -> the value for the trial threshold, by full name.

    Returns:
        What differs first, or ``None``.
    """
    try:
        for seed in SEEDS:
            _compare_training(model, example, forwards, seed)
        modes = [True]
        if _compare_eval(model, example, forwards, "eval output"):
            modes.append(False)
        for training in modes:
            _compare_trial(model, example, forwards, trial, training)
        larger = example.larger_batch()
        if larger is not None:
            _compare_eval(model, larger, forwards, "eval output with one more sample")
    except _MismatchError as mismatch:
        return mismatch.difference
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
    run = _forward_backward if seed == SEEDS[0] else _forward
    with preserved(model), original_forwards(forwards), _own_gradients(model):
        expected = detached(run(model, example, seed))
        gradients = {name: digest(p.grad) for name, p in _own_parameters(model)}
        buffers = {n: b.clone() for n, b in model.named_buffers()}
    with preserved(model), _own_gradients(model):
        with _converted("train output"):
            output = run(model, example, seed)
        _require_equal(expected, output, f"train output, {seed=}")
        for name, parameter in _own_parameters(model):
            if digest(parameter.grad) != gradients[name]:
                raise _MismatchError(f"gradient of {name}, {seed=}")
        for name, buffer in model.named_buffers():
            if not equal(buffer, buffers[name]):
                raise _MismatchError(f"buffer {name} after a training step, {seed=}")


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The user's parameters: not the learned thresholds, which the original does not have."""
    for name, parameter in model.named_parameters():
        if not name.rpartition(".")[2].startswith(PREFIX):
            yield name, parameter


def _forward(model: nn.Module, example: Example, seed: int) -> Any:
    with torch.enable_grad():
        return _run(model, example, True, seed)


def _forward_backward(model: nn.Module, example: Example, seed: int) -> Any:
    with torch.enable_grad():
        output = _forward(model, example, seed)
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


def _evaluate(model: nn.Module, example: Example, seed: int) -> Any:
    with torch.no_grad():
        return _run(model, example, False, seed)


def _compare_eval(
    model: nn.Module, example: Example, forwards: Sequence[SparseForward], what: str
) -> bool:
    """Compare one eval output; False if the original itself refuses this call in eval mode."""
    with preserved(model), original_forwards(forwards):
        try:
            expected = detached(_evaluate(model, example, 0))
        except Exception:  # noqa: BLE001 - whatever a user's forward raises
            return False
    with preserved(model), _converted(what):
        output = _evaluate(model, example, 0)
    _require_equal(expected, output, what)
    return True


def _compare_trial(
    model: nn.Module,
    example: Example,
    forwards: Sequence[SparseForward],
    trial: dict[str, Tensor],
    training: bool,
) -> None:
    """At a threshold, the converted model must compute with exactly the effective weights."""
    held = [item for forward in forwards for item in forward.held]
    if any(item.compute is not None for item in held):
        if not training:
            _compare_fold(model, example, trial)
        return
    what = f"{'training step' if training else 'eval output'} at a trial threshold"
    run = _forward_backward if training else _evaluate
    with preserved(model), _own_gradients(model), _thresholds(model, trial):
        with preserved(model), _converted(what):
            sparse = detached(run(model, example, 0))
        gradients = {item.site: digest(item.weight().grad) for item in held}
        tied = projections(model, {item.site: item for item in held})
        sums = {item.site: item.weight().grad for item in held if item.site in tied}
        model.zero_grad(set_to_none=True)
        static = _effective_leaves(held)
        with preserved(model), original_forwards(forwards), _in_place_of_weights(held, static):
            expected = run(model, example, 0)
        expected_gradients = {item.site: _latent_gradient(item, static) for item in held}
        lookups = {item.site: item.weight().grad for item in held if item.site in tied}
    _require_equal(expected, sparse, what)
    for name, gradient in expected_gradients.items():
        if name in tied:
            same = _is_sum(sums[name], gradient, lookups[name])
        else:
            same = digest(gradient) == gradients[name]
        if not same:
            raise _MismatchError(f"gradient of {name} at a trial threshold", name)


def _is_sum(total: Tensor | None, projection: Tensor | None, lookups: Tensor | None) -> bool:
    """Whether a tied table's gradient is its projection's and its lookups' together.

    There may be several lookups, and autograd adds up in another order where the projection is a
    tensor of its own: up to the rounding of such a sum.
    """
    parts = [part.double() for part in (projection, lookups) if part is not None]
    if total is None or not parts:
        return total is None and not parts
    bound = 4 * torch.finfo(total.dtype).eps * sum(part.abs() for part in parts)
    return bool(((total.double() - sum(parts)).abs() <= bound).all())


def _latent_gradient(held: Held, static: dict[str, Tensor]) -> Tensor | None:
    """What the method makes of the effective weight's gradient; all uses of it added up before."""
    upstream = static[held.site].grad
    if upstream is None or held.method.straight_through:
        return upstream
    with torch.enable_grad():
        return torch.autograd.grad(held.effective(), held.weight(), upstream)[0]


def _compare_fold(model: nn.Module, example: Example, trial: dict[str, Tensor]) -> None:
    """With computed weights, only the folded model has static weights to compare with."""
    what = "eval output at a trial threshold"
    with preserved(model), _thresholds(model, trial):
        with _converted(what):
            sparse = _evaluate(model, example, 0)
        folded = fold(copied(model))
    with preserved_rng():
        _require_equal(_evaluate(folded, example, 0), sparse, what)


@contextlib.contextmanager
def _thresholds(model: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Other thresholds, buffers or parameters, inside."""
    tensors = {
        name: tensor
        for table in (
            model.named_buffers(remove_duplicate=False),
            model.named_parameters(remove_duplicate=False),
        )
        for name, tensor in table
        if name in values
    }
    saved = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            for name, value in values.items():
                tensors[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                tensors[name].copy_(value)


def _effective_leaves(held: Sequence[Held]) -> dict[str, Tensor]:
    """Effective weight by site, as leaves that collect their own gradients."""
    with torch.no_grad():
        return {
            item.site: clean(effective(item)).requires_grad_(item.weight().requires_grad)
            for item in held
        }


@contextlib.contextmanager
def _in_place_of_weights(held: Sequence[Held], static: dict[str, Tensor]) -> Iterator[None]:
    latent = [item.weight() for item in held]
    for item in held:
        item.put(static[item.site])
    try:
        yield
    finally:
        for item, weight in zip(held, latent, strict=True):
            item.put(weight)


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


def _require_equal(expected: Any, actual: Any, what: str) -> None:
    difference = first_difference(expected, actual)
    if difference is not None:
        raise _MismatchError(f"{what}{difference}")
