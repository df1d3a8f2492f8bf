"""The example: one call of the model, and the same call with one more sample."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from st3fx.errors import InputError


@dataclass(frozen=True)
class Example:
    """One call of the model, as in training.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Example:
        """From a tensor, a tuple of positional arguments, or a dict of keyword arguments.

        Raises:
            InputError: For anything else.
        """
        named = dict(kwargs or {})
        if isinstance(inputs, Mapping):
            return cls((), {**inputs, **named})
        if isinstance(inputs, tuple):
            return cls(inputs, named)
        if isinstance(inputs, Tensor | list):
            return cls((inputs,), named)
        raise InputError(
            f"example_inputs is a {type(inputs).__name__}: give a tensor, a tuple of positional "
            "arguments, or a dict of keyword arguments"
        )

    def on_meta(self) -> Example:
        """The same call with tensors that have no values."""
        args, kwargs = pytree.tree_map_only(Tensor, _to_meta, (self.args, self.kwargs))
        return Example(args, kwargs)

    def larger_batch(self) -> Example | None:
        """The same call with one more sample, or ``None`` where no common batch is seen."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        sizes = collections.Counter(
            leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0
        )
        if not sizes:
            return None
        batch = sizes.most_common(1)[0][0]
        grown = {  # one that is given twice stays one
            id(leaf): torch.cat([leaf, leaf[:1]])
            if isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch > 0
            else leaf
            for leaf in leaves
        }
        args, kwargs = pytree.tree_unflatten([grown[id(leaf)] for leaf in leaves], spec)
        return Example(args, kwargs)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
