"""The optimizer and its learning rate, which is a function of the step: nothing to save."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from st3fx.methods.base import LearnedMethod
from st3fx.modules.marks import is_state
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.training.settings import Settings

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """The optimizer over all parameters that are trained.

    Args:
        model: A converted model: thresholds that are learned are among its parameters.
        settings: ``opt``, ``lr``, ``momentum``, and the weight decays.
    """
    groups = parameter_groups(model, settings)
    if settings.opt == "sgd":
        return torch.optim.SGD(
            groups, settings.lr, momentum=settings.momentum, nesterov=settings.nesterov
        )
    kinds: dict[str, Callable[..., Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
    }
    return kinds[settings.opt](groups, lr=settings.lr)


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Weights, parameters of normalisation layers, biases and thresholds, each with its decay.

    Thresholds that are learned are decayed only as their method asks for: decay pulls them to
    another sparsity.
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
    return [
        {"params": parameters, "weight_decay": decays[kind]}
        for kind, parameters in groups.items()
        if parameters
    ]


def _kind(module: nn.Module, name: str) -> str:
    if is_state(name):
        return "thresholds"
    if isinstance(module, _NORMS):
        return "norms"
    return "biases" if name.endswith("bias") or name.startswith("bias") else "weights"


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def learning_rate(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one optimizer step.

    ``cosine`` falls from ``lr`` after the warm-up to ``min_lr`` at the end; ``multistep``
    multiplies by ``lr_gamma`` after each of ``milestones``. The warm-up rises linearly, and its
    last step has ``lr`` itself.

    Args:
        settings: ``sched``, ``lr`` and what belongs to them.
        step: 0 for the first step.
        steps_per_epoch: Optimizer steps.
    """
    epoch = step / steps_per_epoch
    if epoch < settings.warmup_epochs:
        warmup = settings.warmup_epochs * steps_per_epoch
        return settings.lr * min(1.0, (step + 1) / warmup)
    if settings.sched == "multistep":
        return settings.lr * settings.lr_gamma ** sum(epoch >= m for m in settings.milestones)
    if settings.sched == "constant":
        return settings.lr
    share = (epoch - settings.warmup_epochs) / (settings.epochs - settings.warmup_epochs)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * share)) / 2


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all groups the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
