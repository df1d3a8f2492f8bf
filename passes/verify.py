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

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from st3fx.core.converted import PREFIX
from st3fx.core.inputs import Example
from st3fx.core.state import deterministic
from st3fx.errors import VerificationError
from st3fx.passes.equality import (
    Difference,
    MismatchError,
    converted,
    detached,
    digest,
    equal,
    require_equal,
)
from st3fx.passes.subject import Subject, own_gradients
from st3fx.passes.trial import compare_trial

SEEDS = (0, 1)


@deterministic()
def differs(subject: Subject, trial: dict[str, Tensor]) -> Difference | None:
    """Compare a converted model with its original, with deterministic cuDNN kernels.

    Args:
        subject: Left as it was.
        trial: State tensors -> the value for the trial threshold, by full name.

    Returns:
        What differs first, or ``None``.
    """
    try:
        for seed in SEEDS:
            _compare_training(subject, seed)
        modes = [True]
        if _compare_eval(subject, subject.example, "eval output"):
            modes.append(False)
        for training in modes:
            compare_trial(subject, trial, training)
        larger = subject.example.larger_batch()
        if larger is not None:
            _compare_eval(subject, larger, "eval output with one more sample")
    except MismatchError as mismatch:
        return mismatch.difference
    return None


def _compare_training(subject: Subject, seed: int) -> None:
    expected, gradients, buffers = {}, {}, {}
    model = subject.model
    run = subject.step if seed == SEEDS[0] else subject.forward
    with subject.preserved(), subject.original(), own_gradients(model):
        expected = detached(_original_step(subject, run, seed))
        gradients = {name: digest(p.grad) for name, p in _own_parameters(model)}
        buffers = {n: b.clone() for n, b in _stateful(subject)}
    with subject.preserved(), own_gradients(model):
        with converted("train output"):
            output = run(seed)
        require_equal(expected, output, f"train output, {seed=}")
        for name, parameter in _own_parameters(model):
            if digest(parameter.grad) != gradients[name]:
                raise MismatchError(f"gradient of {name}, {seed=}")
        for name, tensor in _stateful(subject):
            if name not in buffers or not equal(tensor, buffers[name]):
                raise MismatchError(f"{name} after a training step, {seed=}")


def _original_step(subject: Subject, run: Callable[[int], Any], seed: int) -> Any:
    """A step of the original; what fails there fails without the conversion too.

    Raises:
        VerificationError: If it does.
    """
    try:
        return run(seed)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise VerificationError(
            f"{type(subject.model).__name__} itself fails in a training step on the example: "
            f"{type(error).__name__}: {reason[0]}; if it is meant to, use verify=False"
        ) from error


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The user's parameters: not the learned thresholds, which the original does not have."""
    for name, parameter in model.named_parameters():
        if not name.rpartition(".")[2].startswith(PREFIX):
            yield name, parameter


def _stateful(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """What a call changes: buffers, and parameters that the forward writes to."""
    yield from subject.model.named_buffers()
    for name in subject.written:
        yield name, subject.model.get_parameter(name).detach()


def _compare_eval(subject: Subject, example: Example, what: str) -> bool:
    """Compare one eval output; False if the original itself refuses this call in eval mode."""
    with subject.preserved(), subject.original():
        try:
            expected = detached(subject.evaluate(example))
        except Exception:  # noqa: BLE001 - whatever a user's forward raises
            return False
    with subject.preserved(), converted(what):
        output = subject.evaluate(example)
    require_equal(expected, output, what)
    return True
