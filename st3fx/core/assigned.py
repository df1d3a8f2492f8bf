"""A forward that writes to its own weight, as nodes of a graph.

Max-norm layers, masked convolutions: the weight is projected before it multiplies. In a graph the
write is a node, and what reads the weight afterwards depends on it: a weight that is computed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from st3fx.core import cache


def assign_data(tensor: Tensor, value: Tensor) -> Tensor:
    """``tensor.data = value``; gives the tensor."""
    if not is_fake(tensor):  # one fake tensor stands for all of its shape
        tensor.data = value
    return tensor


def after(weight: Tensor, *writes: Any) -> Tensor:
    """A parameter once it has been written to.

    No version tells of writes through ``.data``, so what was kept of it is forgotten.
    """
    cache.forget([weight])
    return weight


def private(weight: Tensor) -> Tensor:
    """A copy to write to, where the weight is computed without running the forward."""
    return weight.detach().clone()
