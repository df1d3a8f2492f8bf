"""Targets over weights of few magnitudes: any shapes, methods, groups, budgets, types, memory."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import EmptyLayerWarning
from st3fx.methods import create
from st3fx.sparsity.granularity import parse


def case(seed: int, folder: Path) -> str | None:
    """Hold if the target is reached to one weight or group, in a model, its file and its fold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyLayerWarning)
        return _case(seed, folder)


def _case(seed: int, folder: Path) -> str | None:
    dice = random.Random(seed)
    torch.manual_seed(seed)
    dtype = dice.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
    net, x = _net(dice, dtype)
    text = dice.choice(["unstructured", "unstructured", "block:4", "channels"])
    budget, name = dice.choice(["weights", "macs"]), dice.choice(["st3", "st3-sigma", "gmp"])
    name = dice.choice([name, "feather"])
    target = dice.choice([0.1, 0.5, 0.7, 0.9, 0.97, dice.uniform(0.01, 0.99)])
    own: Any = create(name, sparsity=target, granularity=parse(text), budget=budget)
    said = f"{name} {text} {budget} {dtype} {target:.4f}"
    model, sparsifier = st3fx.convert(net, x, own, total_steps=10, keep_zeros=False)
    sparsifier.set_sparsity(target)
    sites = sparsifier.plan.sites
    costs = [site.cost if budget == "macs" else 1 for site in sites]
    weights = sparsifier.effective_weights()
    zeros = sum(c * _zeros(weights[s.name]) for c, s in zip(costs, sites, strict=True))
    whole = sum(c * s.numel for c, s in zip(costs, sites, strict=True))
    one = max(c * own.granularity.largest(s) for c, s in zip(costs, sites, strict=True))
    if abs(zeros - target * whole) > one + 1e-6 * whole * (dtype != torch.float64):
        return f"{said}: {zeros / whole:.5f} of the weights' cost, {one / whole:.5f} is one group"
    torch.save(model.state_dict(), folder / "state.pt")
    model.load_state_dict(torch.load(folder / "state.pt"))
    expected = model.eval()(x)
    if any(not torch.equal(w, weights[n]) for n, w in sparsifier.effective_weights().items()):
        return f"{said}: other weights after a state dict"
    return None if torch.equal(st3fx.fold(model)(x), expected) else f"{said}: folds to another"


def _zeros(weight: Tensor) -> int:
    return weight.numel() - int(weight.count_nonzero())


def _net(dice: random.Random, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Two convolutions and a product, with weights of few magnitudes, none of them 0."""
    first, second, groups = dice.choice([4, 8, 9]), dice.choice([8, 12, 16]), dice.choice([1, 1, 4])
    net = nn.Sequential(
        nn.Conv2d(4, first, 3), nn.ReLU(),
        nn.Conv2d(first, second, 3, groups=groups if not first % groups else 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * second, dice.choice([1, 10, 33])),
    )  # fmt: skip
    kinds, unit = dice.choice([1, 1, 2, 5, 40]), 2.0 ** dice.randint(-6, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                sizes = torch.randint(1, kinds + 1, parameter.shape) * unit
                parameter.copy_(sizes * (torch.randint(0, 2, parameter.shape) * 2 - 1))
    form = dice.choice([torch.contiguous_format, torch.channels_last])
    return net.to(dtype).to(memory_format=form), torch.randn(2, 4, 7, 7).to(dtype)
