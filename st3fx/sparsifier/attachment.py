"""Optimizers whose steps are counted, and those that seem to train other weights."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from st3fx.sparsity.digest import Digest, digests
from st3fx.sparsity.shards import local


class Attachment:
    """The hooks on an optimizer, and on one that it drives and that may be called without it.

    SAM and its like hold the optimizer that really steps; some loops call ``step(closure)`` of the
    outer one, others two methods of its own, of which the second steps the inner one. A step is
    counted once either way.
    """

    def __init__(self, optimizer: Any, trained: set[int], after: Callable[..., Any]) -> None:
        """Call ``after(optimizer)`` after every step.

        Args:
            optimizer: With torch's step hooks.
            trained: Identities of the parameters that an inner optimizer must have some of.
            after: Called with what has stepped.
        """
        self._optimizer = weakref.ref(optimizer)
        self.after = after
        self._inside = False
        self._handles = [optimizer.register_step_post_hook(self._outer_has_stepped)]
        inner = [own for own in vars(optimizer).values() if _trains(own, trained)]
        if inner:
            self._handles.append(optimizer.register_step_pre_hook(self._outer_steps))
        self._handles += [own.register_step_post_hook(self._inner_has_stepped) for own in inner]

    @property
    def optimizer(self) -> Any:
        """What it is attached to; ``None`` if that has gone."""
        return self._optimizer()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _outer_steps(self, *_: Any) -> None:
        self._inside = True

    def _outer_has_stepped(self, optimizer: Any, *_: Any) -> None:
        self._inside = False
        if not _makes_state():
            self.after(optimizer)

    def _inner_has_stepped(self, optimizer: Any, *_: Any) -> None:
        if not self._inside and not _makes_state():
            self.after(optimizer)


def _makes_state() -> bool:
    """Whether a step is none, but makes the state that a checkpoint is loaded into, or saved from.

    ``torch.distributed.checkpoint`` makes it by a step with gradients and learning rates of zero,
    of an optimizer that has none yet.
    """
    frame = inspect.currentframe()
    for _ in range(12):  # hooks, and what schedulers and profilers wrap around a step
        frame = None if frame is None else frame.f_back
        if frame is not None and frame.f_code.co_name == "_init_optim_state":
            return True
    return False


def _trains(value: Any, trained: set[int]) -> bool:
    return isinstance(value, torch.optim.Optimizer) and any(
        id(parameter) in trained for group in value.param_groups for parameter in group["params"]
    )


class Stillness:
    """Whether no weight moves although the model is trained.

    The first look remembers versions, which tell of most optimizers at the second. Where they have
    not risen (fused optimizers raise none), the second remembers the values, and the third decides:
    an optimizer may leave its first step out by design, or begin with a learning rate of zero.
    """

    def __init__(self) -> None:
        self._versions: list[Any] | None = None
        self._gradients: list[Any] = []
        self._values: list[Digest] | None = None
        self._done = False

    def is_certain(self, weights: Sequence[Tensor], *, trained: bool) -> bool:
        """At one look, once: no weight has moved between two looks, and there was training.

        Args:
            weights: The sites' latent weights.
            trained: Whether a forward has recorded gradients since the last look; new gradients of
                the weights say so, too.
        """
        if self._done:
            return False
        before, self._gradients = self._gradients, [_version(weight.grad) for weight in weights]
        trained = trained or self._gradients != before
        versions = [*map(_version, weights)]
        if self._versions is None or not trained or not _all_finite(weights):
            self._versions = self._versions or versions
            return False
        if versions == self._versions:
            known, self._values = self._values, digests([*map(local, weights)], wait=True)
            if known is None or known != self._values:
                self._done = known is not None
                return False
        self._done = True
        return versions == self._versions


def _version(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return id(tensor), -1 if tensor.is_inference() else tensor._version


def _all_finite(weights: Sequence[Tensor]) -> bool:
    """A gradient scaler skips a step whose gradients are not."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return all(bool(local(gradient).isfinite().all()) for gradient in gradients)
