"""The optimizer and its learning rate, which is a function of the step: nothing to save."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from st3fx.errors import TrainError
from st3fx.methods.base import DrawnMethod, LearnedMethod, Method
from st3fx.methods.lrr import LRR
from st3fx.modules.marks import is_state
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.training.settings import Settings
from st3fx.training.together import Together

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)

_SHARE = "share_of_lr"
"""In a group: its learning rate, as a share of that of the others."""


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """The optimizer over all parameters that are trained.

    Probabilities of masks have gradients as small as the weights, and SGD hardly moves them: beside
    SGD they have an Adam of their own.

    Args:
        model: A converted model: thresholds that are learned are among its parameters.
        settings: ``opt``, ``lr``, ``probability_lr``, ``momentum``, and the weight decays.
    """
    groups = parameter_groups(model, settings)
    if settings.opt == "sgd":
        drawn = [group for group in groups if _SHARE in group]
        sgd = torch.optim.SGD(
            [group for group in groups if _SHARE not in group],
            settings.lr, momentum=settings.momentum, nesterov=settings.nesterov,
        )  # fmt: skip
        return Together([sgd, torch.optim.Adam(drawn, settings.lr)]) if drawn else sgd
    kinds: dict[str, Callable[..., Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
    }
    return kinds[settings.opt](groups, lr=settings.lr)


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Weights, parameters of normalisation layers, biases and thresholds, each with its decay.

    Thresholds that are learned are decayed only as their method asks for: decay pulls them to
    another sparsity. Probabilities of masks have a learning rate of their own.
    """
    method = Sparsifier(model).method
    decay = settings.weight_decay
    decays = {
        "weights": decay,
        "norms": _or(settings.norm_weight_decay, decay),
        "biases": _or(settings.bias_weight_decay, decay),
        "thresholds": method.threshold_decay(decay) if isinstance(method, LearnedMethod) else 0.0,
    }
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in decays}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups[_kind(module, name)].append(parameter)
    found: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decays[kind]}
        for kind, parameters in groups.items()
        if parameters
    ]
    if groups["thresholds"] and isinstance(method, DrawnMethod):
        found[-1][_SHARE] = settings.probability_lr / settings.lr if settings.lr else 0.0
    return found


def _kind(module: nn.Module, name: str) -> str:
    if is_state(name):
        return "thresholds"
    if isinstance(module, _NORMS):
        return "norms"
    return "biases" if name.endswith("bias") or name.startswith("bias") else "weights"


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def learning_rate(
    settings: Settings, step: int, steps_per_epoch: int, period: range | None = None
) -> float:
    """The learning rate of one optimizer step.

    ``cosine`` falls from ``lr`` after the warm-up to ``min_lr`` at the end; ``multistep``
    multiplies by ``lr_gamma`` after each of ``milestones``. The warm-up rises linearly, and its
    last step has ``lr`` itself.

    Args:
        settings: ``sched``, ``lr`` and what belongs to them.
        step: 0 for the first step.
        steps_per_epoch: Optimizer steps.
        period: The steps, this one among them, over which the schedule runs, warm-up included; by
            default all of the run. Epochs are counted from its start.
    """
    epochs: float = settings.epochs
    if period is not None:
        step, epochs = step - period.start, len(period) / steps_per_epoch
    epoch = step / steps_per_epoch
    if epoch < settings.warmup_epochs:
        warmup = settings.warmup_epochs * steps_per_epoch
        return settings.lr * min(1.0, (step + 1) / warmup)
    if settings.sched == "multistep":
        passed = sum(epoch >= m for m in settings.milestones)
        return settings.lr * math.prod([settings.lr_gamma] * passed)  # a power would overflow
    if settings.sched == "constant":
        return settings.lr
    share = (epoch - settings.warmup_epochs) / (epochs - settings.warmup_epochs)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * share)) / 2


def require_fit(settings: Settings, method: Method, steps_per_epoch: int) -> None:
    """Fail where the optimizer, or the learning rate's schedule, does not fit the method.

    Args:
        settings: Of the run.
        method: Says how often the schedule starts again.
        steps_per_epoch: Optimizer steps.

    Raises:
        TrainError: Naming the setting.
    """
    given = settings.probability_lr != Settings.probability_lr
    if given and not isinstance(method, DrawnMethod):
        raise TrainError(
            f"probability_lr = {settings.probability_lr:g} is for methods that draw masks "
            f"(probmask), and the method is {method.name}: leave --probability-lr out"
        )
    total = settings.epochs * steps_per_epoch
    steps = len(method.period(0, total))
    if steps == total:
        return
    epochs = steps / steps_per_epoch
    if isinstance(method, LRR) and method.count > total:
        raise TrainError(
            f"{total} steps are too few for the cycles of {method.name}: give more --epochs, or "
            "fewer cycles by --method-option cycles=N"
        )
    if settings.warmup_epochs >= epochs:
        raise TrainError(
            f"warmup_epochs = {settings.warmup_epochs:g} fills a cycle of {method.name}, which has "
            f"{epochs:.3g} epochs: give fewer, more --epochs, or --method-option cycles=N"
        )
    if settings.sched == "multistep" and min(settings.milestones) >= epochs:
        raise TrainError(
            f"no milestone lies in a cycle of {method.name}, which has {epochs:.3g} epochs, from "
            "whose start they are counted: give an earlier one, or --sched cosine"
        )


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all groups the same rate, or their share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_SHARE, 1.0)
