"""What every converted model must hold, checked against the original and not by our own verify.

The oracle for a sparse model is a copy of the original whose parameters *are* the effective
weights: its outputs and its gradients are what the converted model must give, bit for bit.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import st3fx
from st3fx.modules.state import rng_states, seed_everything
from st3fx.plan.sites import SparsityPlan

SEEDS = (0, 1)


@dataclass(frozen=True)
class Checked:
    """What a checked conversion gave; the model stays at the sparsity of the check."""

    model: nn.Module
    sparsifier: st3fx.Sparsifier
    folded: nn.Module

    @property
    def plan(self) -> SparsityPlan:
        return self.sparsifier.plan

    @property
    def sites(self) -> list[str]:
        return [site.name for site in self.plan.sites]

    @property
    def islands(self) -> dict[str, tuple[str, ...]]:
        """Captured modules with the modes of their graphs."""
        return {island.name: island.modes for island in self.plan.islands}

    @property
    def opaque(self) -> dict[str, str]:
        """Modules that kept their own forward, with the reason."""
        return {module.name: module.reason for module in self.plan.opaque}

    @property
    def skipped(self) -> dict[str, str]:
        return {site.name: site.reason for site in self.plan.skipped}


def check(
    model: nn.Module,
    inputs: Any,
    *,
    sparsity: float = 0.5,
    oracle: bool = True,
    in_eval: bool = True,
    **options: Any,
) -> Checked:
    """Convert and hold the whole contract against the original.

    Args:
        model: The original.
        inputs: As for ``convert``.
        sparsity: For the sparse half of the check.
        oracle: Whether effective weights can be loaded into the original (not computed ones).
        in_eval: Whether the original takes these inputs in eval mode.
        options: For ``convert``; ``verify`` is off by default, so that it can save nothing.
    """
    before = snapshot(model)
    converted, sparsifier = st3fx.convert(model, inputs, **{"verify": False, **options})
    require_same(before, snapshot(model), "the given model")
    args, kwargs = call_of(inputs, options.get("example_kwargs"))
    modes = (True, False) if in_eval else (True,)

    original = copy.deepcopy(model)
    for training in modes:
        require_parity(original, converted, args, kwargs, training)
    sparsifier.set_sparsity(sparsity)
    if oracle:
        loaded = original.load_state_dict(sparsifier.effective_weights(), strict=False)
        assert not loaded.unexpected_keys
        for training in modes:
            require_parity(original, converted, args, kwargs, training)

    folded = st3fx.fold(converted)
    require_plain(folded)
    require_zeros(folded)
    if oracle:
        assert type(folded) is type(model)
        assert list(folded.state_dict()) == list(model.state_dict())
        copy.deepcopy(model).load_state_dict(folded.state_dict(), strict=True)
    if in_eval:
        with torch.no_grad():
            sparse = run(converted, args, kwargs, training=False, seed=0)
            static = run(folded, args, kwargs, training=False, seed=0)
        require_same(sparse, static, "output after fold")
    return Checked(converted, sparsifier, folded)


def call_of(
    inputs: Any, kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the call that ``inputs`` stand for."""
    if isinstance(inputs, dict):
        return (), {**inputs, **(kwargs or {})}
    return inputs if isinstance(inputs, tuple) else (inputs,), dict(kwargs or {})


def run(model: nn.Module, args: Any, kwargs: Any, *, training: bool, seed: int) -> Any:
    seed_everything(seed)
    return model.train(training)(*args, **kwargs)


def step(model: nn.Module, args: Any, kwargs: Any, seed: int) -> dict[str, Any]:
    """One training step without an optimizer: output, gradients, buffers, generators."""
    model.zero_grad(set_to_none=True)
    output = run(model, args, kwargs, training=True, seed=seed)
    found = [leaf for leaf in leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    sum(((leaf.float() - 0.3) ** 2).sum() for leaf in found).backward()  # type: ignore[union-attr]
    return {
        "output": output,
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers() if "st3fx" not in n},
        "generators": rng_states(),
    }


def require_parity(
    original: nn.Module, converted: nn.Module, args: Any, kwargs: Any, training: bool
) -> None:
    """Two models compute the same, bit for bit, in one mode and under two seeds."""
    for seed in SEEDS:
        if training:
            expected, actual = (step(m, args, kwargs, seed) for m in (original, converted))
        else:
            with torch.no_grad():
                expected, actual = (
                    {"output": run(m, args, kwargs, training=False, seed=seed)}
                    for m in (original, converted)
                )
        for what, value in expected.items():
            require_same(value, actual[what], f"{what}, {training=}, {seed=}")


def require_same(expected: Any, actual: Any, what: str) -> None:
    """Equal structure, equal bits."""
    wanted, given = leaves(expected), leaves(actual)
    assert _structure(expected) == _structure(actual), what
    for left, right in zip(wanted, given, strict=True):
        if isinstance(left, Tensor):
            assert isinstance(right, Tensor), what
            assert left.dtype == right.dtype, what
            assert torch.equal(left, right), what
        else:
            assert left == right, what


def leaves(value: Any) -> list[Any]:
    """Leaves of an output; plain dataclasses are opened too."""
    return [
        inner
        for leaf in pytree.tree_leaves(value)
        for inner in (leaves(vars(leaf)) if dataclasses.is_dataclass(leaf) else [leaf])
    ]


def _structure(value: Any) -> Any:
    found, spec = pytree.tree_flatten(value)
    return spec, [type(leaf) for leaf in found]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a conversion must not change, and the generators."""
    return {
        "tensors": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "gradients": {name: p.requires_grad for name, p in model.named_parameters()},
        "attributes": {n: sorted(m.__dict__) for n, m in model.named_modules()},
        "training": {n: m.training for n, m in model.named_modules()},
        "generators": rng_states(),
    }


def require_plain(model: nn.Module) -> None:
    """No object, class, buffer or attribute of st3fx anywhere in a model."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # its tables are no dicts, and nothing was ever put into them
        assert not type(module).__module__.startswith("st3fx"), name
        for key, value in [*module.__dict__.items(), *module._buffers.items()]:
            assert "st3fx" not in key, f"{name}.{key}"
            assert not type(value).__module__.startswith("st3fx"), f"{name}.{key}"
        tables = (module._parameters, module._buffers, module._non_persistent_buffers_set)
        assert not any("st3fx" in key for table in tables for key in table), name


def require_zeros(model: nn.Module) -> None:
    """Zeros of the parameters are ``+0.0``, and none is denormal."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.dtype == torch.float16:
            continue
        tiny = torch.finfo(parameter.dtype).tiny
        assert not torch.signbit(parameter[parameter == 0]).any(), name
        assert not ((parameter != 0) & (parameter.abs() < tiny)).any(), name
