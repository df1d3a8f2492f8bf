"""Operators that call functions (``cond``, ``scan``, ``flex_attention``), as plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch._C import DispatchKey
from torch._ops import HigherOrderOperator


def kernel_of(func: HigherOrderOperator) -> Callable[..., Any] | None:
    """What an operator does, in Python; ``None`` where it does not say it."""
    own = _KERNELS.get(func.name())
    kernel: Callable[..., Any] | None = func.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
    return own or kernel


def _cond(pred: Any, when_true: Any, when_false: Any, operands: Any) -> Any:
    return (when_true if pred else when_false)(*operands)


def _scan(combine: Any, init: Any, xs: Any, additional_inputs: Any, **_: Any) -> Any:
    # Private, and all that there is: the operator's kernel is this call behind a check.
    from torch._higher_order_ops.scan import generic_scan  # noqa: PLC0415

    return generic_scan(combine, init, xs, additional_inputs=additional_inputs)


_KERNELS: Final[dict[str, Callable[..., Any]]] = {"cond": _cond, "scan": _scan}
"""What torch's own kernels do, which refuse to run while a mode observes."""
