"""Tensors without memory that stand for real ones, and copies of modules on them."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from st3fx.core.converted import FORWARD, PREFIX, RUN, SITES, leave, plain_class
from st3fx.core.hooks import has_hooks

_PLAIN = (Tensor, nn.Parameter, FakeTensor)


class Meta(NamedTuple):
    """All of a tensor but its data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def meta_of(tensor: Tensor) -> Meta | None:
    """The metadata of a plain dense tensor, a fake one too; ``None`` for any other kind."""
    if type(tensor) not in _PLAIN or tensor.layout is not torch.strided:
        return None
    if tensor.is_quantized or tensor.is_nested:
        return None
    return Meta(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


class StandIns:
    """One fake tensor for all tensors of a kind, and one copy of each module that is called."""

    def __init__(self) -> None:
        """Empty."""
        self._tensors: dict[Meta, Tensor] = {}
        self._copies: dict[nn.Module, nn.Module] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """For a parameter or buffer: one for all that differ in their data alone."""
        meta = meta_of(tensor)
        if meta is None:
            raise TypeError("is no plain tensor")
        if meta not in self._tensors:
            self._tensors[meta] = fake(meta)
        return self._tensors[meta]

    def module(self, module: nn.Module) -> nn.Module:
        """A private copy of a module, without the forwards that we have put on it.

        Raises:
            ValueError: If hooks, or forwards of others, would run.
        """
        if module not in self._copies:
            _require_own_forward(module)
            make = self._shallow if is_torchs(module) else self._deep
            self._copies[module] = make(module)
        return self._copies[module]

    def _shallow(self, module: nn.Module) -> nn.Module:
        """A copy of one of torch's layers, which keep no state but tensors and flags."""
        twin: nn.Module = object.__new__(plain_class(type(module)))
        own = {key: v for key, v in module.__dict__.items() if not key.startswith(PREFIX)}
        twin.__dict__.update(own)
        twin.__dict__.pop("forward", None)
        for table in ("_parameters", "_buffers"):
            twin.__dict__[table] = {
                key: None if tensor is None else self.tensor(tensor)
                for key, tensor in module.__dict__[table].items()
            }
        inner = {key: m and self._shallow(m) for key, m in module._modules.items()}
        twin.__dict__["_modules"] = inner
        if isinstance(module, nn.RNNBase):
            names = module._flat_weights_names
            twin.__dict__["_flat_weights"] = [twin._parameters[key] for key in names]
        return twin

    def _deep(self, module: nn.Module) -> nn.Module:
        """A copy of a user's module."""
        memo: dict[int, Any] = {}
        for inner in module.modules():
            for leaf in pytree.tree_leaves(list(inner.__dict__.values())):
                if isinstance(leaf, Tensor):
                    memo[id(leaf)] = self.tensor(leaf)
            for key in ("forward", FORWARD, RUN, SITES):
                if inner.__dict__.get(key) is not None:
                    memo[id(inner.__dict__[key])] = None
        twin = copy.deepcopy(module, memo)
        for inner in twin.modules():
            inner.__dict__.pop("forward", None)
            leave(inner)
            for key in [key for key in inner.__dict__ if key.startswith(PREFIX)]:
                del inner.__dict__[key]
        return twin


def fake(meta: Meta) -> Tensor:
    """A tensor without memory, under a mode that makes such."""
    return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device=meta.device)


def is_torchs(module: nn.Module) -> bool:
    """Whether a module is made of torch's own layers alone."""
    return all(type(inner).__module__.startswith("torch.nn.") for inner in module.modules())


def _require_own_forward(module: nn.Module) -> None:
    """Refuse hooks, and forwards that others have put on a module; ours stand for its own.

    Raises:
        ValueError: With what was found.
    """
    for inner in module.modules():
        if has_hooks(inner):
            raise ValueError("has hooks")
        forward = inner.__dict__.get("forward")
        if forward is not None and getattr(forward, "replaced", forward) is not None:
            raise ValueError("has a forward of its own")
