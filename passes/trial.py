"""At a trial threshold a converted model computes with exactly the effective weights.

It is compared with the original forward over the effective weights as they are; with computed
weights, whose forward makes them anew, with the folded model.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.core.bound import Bound, bound_sites
from st3fx.core.copying import copied
from st3fx.core.run import run_of
from st3fx.core.state import preserved_rng
from st3fx.passes.equality import MismatchError, converted, detached, digest, require_equal
from st3fx.passes.fold import clean, effective, fold, projections
from st3fx.passes.subject import Subject, own_gradients


def compare_trial(subject: Subject, trial: dict[str, Tensor], training: bool) -> None:
    """Compare a training step, or the eval output.

    Args:
        subject: Left as it was.
        trial: State tensors -> the value for the trial threshold, by full name.
        training: Which of the two.

    Raises:
        MismatchError: If they differ.
    """
    model = subject.model
    held = bound_sites(model, run_of(model))
    if any(item.compute is not None for item in held):
        if not training:
            _compare_fold(subject, trial)
        return
    what = f"{'training step' if training else 'eval output'} at a trial threshold"

    def run() -> Any:
        return subject.step(0) if training else subject.evaluate()

    with subject.preserved(), own_gradients(model), _thresholds(model, trial):
        with subject.preserved(), converted(what):
            sparse = detached(run())
        gradients = {item.site.name: digest(item.weight().grad) for item in held}
        tied = projections(model, held)
        sums = {n: item.weight().grad for item in held if (n := item.site.name) in tied}
        model.zero_grad(set_to_none=True)
        static = _effective_leaves(held)
        with subject.preserved(), subject.original(), _in_place_of_weights(held, static):
            expected = run()
        expected_gradients = {item.site.name: _latent_gradient(item, static) for item in held}
        lookups = {n: item.weight().grad for item in held if (n := item.site.name) in tied}
    require_equal(expected, sparse, what)
    for name, gradient in expected_gradients.items():
        if name in tied:
            same = _is_sum(sums[name], gradient, lookups[name])
        else:
            same = digest(gradient) == gradients[name]
        if not same:
            raise MismatchError(f"gradient of {name} at a trial threshold", name)


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


def _latent_gradient(held: Bound, static: dict[str, Tensor]) -> Tensor | None:
    """What the method makes of the effective weight's gradient; all uses of it added up before."""
    upstream = static[held.site.name].grad
    if upstream is None or held.sparse.method.straight_through:
        return upstream
    with torch.enable_grad():
        return torch.autograd.grad(held.effective(), held.weight(), upstream)[0]


def _compare_fold(subject: Subject, trial: dict[str, Tensor]) -> None:
    """With computed weights, only the folded model has static weights to compare with."""
    what = "eval output at a trial threshold"
    with subject.preserved(), _thresholds(subject.model, trial):
        with subject.preserved(), converted(what):
            sparse = subject.evaluate()
        folded = fold(copied(subject.model))
    twin = dataclasses.replace(subject, model=folded, left={False: ()})
    with preserved_rng():
        require_equal(twin.evaluate(), sparse, what)


@contextlib.contextmanager
def _thresholds(model: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Other thresholds, buffers or parameters, inside."""
    tensors: dict[str, Tensor] = {}
    for name in values:
        path, _, key = name.rpartition(".")
        tensors[name] = getattr(model.get_submodule(path), key)
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


def _effective_leaves(held: Sequence[Bound]) -> dict[str, Tensor]:
    """Effective weight by site, as leaves that collect their own gradients."""
    with torch.no_grad():
        return {
            item.site.name: nn.Parameter(clean(effective(item)), item.weight().requires_grad)
            for item in held
        }


@contextlib.contextmanager
def _in_place_of_weights(held: Sequence[Bound], static: dict[str, Tensor]) -> Iterator[None]:
    latent = [item.weight() for item in held]
    for item in held:
        item.put(static[item.site.name])
    try:
        yield
    finally:
        for item, weight in zip(held, latent, strict=True):
            item.put(weight)
