"""A forward that writes to its own weight, as nodes of a graph.

Max-norm layers, masked convolutions: the weight is projected before it multiplies. In a graph the
write is a node, and what reads the weight afterwards depends on it: a weight that is computed.

``y += x`` and its like as nodes of a graph.

A tensor is written to, a number is not: the code that torch.fx writes for ``operator.iadd`` binds
the name of the left side anew, which other nodes may go on using.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from st3fx.sparsity import cache


def iadd(left: Any, right: Any) -> Any:
    """``left += right``."""
    left += right
    return left


def isub(left: Any, right: Any) -> Any:
    """``left -= right``."""
    left -= right
    return left


def imul(left: Any, right: Any) -> Any:
    """``left *= right``."""
    left *= right
    return left


def itruediv(left: Any, right: Any) -> Any:
    """``left /= right``."""
    left /= right
    return left


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
