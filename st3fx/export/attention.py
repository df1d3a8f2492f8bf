"""Attention over tensors of any number of dimensions, for exporters that know four."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class FourDimensions(TorchFunctionMode):
    """Gives ``scaled_dot_product_attention`` a batch and heads, where it is called without.

    Its dimensions before the last two are all alike: those that are missing are of size 1, and
    those that are too many are one.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch's, attention otherwise."""
        given = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **given)
        return func(*args, **given)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **more: Any,
) -> Tensor:
    tensors = (query, key, value)
    if all(tensor.dim() == 4 for tensor in tensors) or more.get("enable_gqa"):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **more)
    lead = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in tensors))
    query, key, value = (_four(tensor, lead) for tensor in tensors)
    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = _four(attn_mask, lead)
    result = functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **more)
    return result.reshape(*lead, *result.shape[-2:])


def _four(tensor: Tensor, lead: Sequence[int]) -> Tensor:
    """A tensor with two dimensions before its last two."""
    whole = tensor.expand(*lead, *tensor.shape[-2:])
    if len(lead) < 2:
        return whole.reshape(*lead, *[1] * (2 - len(lead)), *tensor.shape[-2:])
    return whole.flatten(0, len(lead) - 2)
