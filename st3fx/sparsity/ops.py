"""Defines the operators that make effective weights: dispatch, gradients, frozen masks.

A method gives a formula and, unless its gradient is straight through, a gradient rule; the contract
of both is that of :class:`st3fx.sparsity.formula.Formula`. Here they become
``st3fx::NAME(weight, threshold, mask, constants...)``, an operator with its own autograd kernel
that works eagerly (with cached effective weights, see ``st3fx.sparsity.cache``), compiled, on fake
tensors and under ``torch.func``.

``mask`` is empty, or holds the weights that are left when the sparsity was frozen: the others are
zero from then on, whatever becomes of weight and threshold, and get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.distributed.tensor import DTensor

from st3fx.sparsity import cache, parallel, recompute
from st3fx.sparsity.formula import Formula, Inputs
from st3fx.sparsity.mask_bits import unpacked

Gradient: TypeAlias = Callable[..., tuple[Tensor | None, ...]]
"""``gradient(grad, weight, threshold, *constants)``: with respect to weight, threshold, and those
of the constants that are learned."""

Op: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class Operator:
    """What :func:`define` has registered.

    Attributes:
        op: ``op(weight, threshold, mask, *constants)``, the ``OpOverload``.
        formula: What it computes.
        gradient: Its gradient rule; ``None`` is straight through.
    """

    op: Op
    formula: Formula
    gradient: Gradient | None = None


def define(
    name: str,
    constants: str,
    formula: Formula,
    gradient: Gradient | None = None,
    passes: Callable[[Tensor], Tensor] | None = None,
) -> Operator:
    """Register an operator.

    Args:
        name: In the namespace ``st3fx``.
        constants: Schema of the arguments after weight, threshold and mask; may be empty.
        formula: The effective weight.
        gradient: ``None`` is straight through: ``∂L/∂w := ∂L/∂ŵ``, and nothing is saved.
        passes: ``passes(threshold)``: whether gradients pass the mask, 0-dimensional; by default
            they never do.
    """
    full_name = f"st3fx::{name}"
    if gradient is not None:
        gradient = _of_untied(gradient, formula)
    arguments = ", ".join(filter(None, ("Tensor weight, Tensor threshold, Tensor mask", constants)))
    torch.library.define(full_name, f"({arguments}) -> Tensor")
    op: Op = getattr(torch.ops.st3fx, name).default

    def kernel(weight: Tensor, threshold: Tensor, mask: Tensor, *constants: Any) -> Tensor:
        effective = torch.empty_like(weight)
        Inputs(formula, weight, threshold, mask, constants).evaluate(effective)
        if torch.is_inference_mode_enabled():  # the autograd kernel is not called there
            effective.requires_grad_(weight.requires_grad)
        return effective

    def fake(weight: Tensor, threshold: Tensor, mask: Tensor, *constants: Any) -> Tensor:
        return torch.empty_like(weight)

    torch.library.impl(full_name, "CompositeExplicitAutograd")(kernel)
    torch.library.register_fake(full_name)(fake)
    torch.library.impl(full_name, "Autograd")(_autograd(op, formula, gradient, passes))
    return Operator(op, formula, gradient)


def _of_untied(gradient: Gradient, formula: Formula) -> Gradient:
    """The rule for thresholds that split ties, too."""

    def rule(
        grad: Tensor, weight: Tensor, threshold: Tensor, *constants: Any
    ) -> tuple[Tensor | None, ...]:
        return gradient(grad, *_flat(formula.untied(weight, threshold, constants)))

    return rule


def _flat(found: tuple[Tensor, Tensor, tuple[Any, ...]]) -> tuple[Any, ...]:
    return (*found[:2], *found[2])


def _autograd(
    op: Op,
    formula: Formula,
    gradient: Gradient | None,
    passes: Callable[[Tensor], Tensor] | None,
) -> Op:
    """The autograd kernel of one operator."""

    def compute(*args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def effective(args: tuple[Any, ...], *, differentiable: bool) -> Tensor:
        cached = cache.lookup(
            Inputs(formula, args[0], args[1], args[2], args[3:]), differentiable=differentiable
        )
        if cached is not None:
            return cached
        result = compute(*args)
        if differentiable:
            recompute.note(result, compute, args)
        return result

    function = _function(effective, gradient, formula.learned, passes)

    def kernel(*args: Any) -> Tensor:
        if args[2].dtype is not torch.bool and args[2].numel():  # from a state dict, functionally
            args = (*args[:2], unpacked(args[2], tuple(args[0].shape)), *args[3:])
        if any(isinstance(arg, DTensor) for arg in args):
            return parallel.applied(op, formula, args)
        transformed = torch._C._functorch.maybe_current_level() is not None
        # A tangent is followed where gradients are switched off, too.
        if torch.is_grad_enabled() or transformed or forward_ad._current_level >= 0:
            with enable_single_level_autograd_function():
                result: Tensor = function.apply(*args)
                return result
        # Without gradients too, kernels ask whether a weight requires them (matmul folds its batch
        # then): the effective weight must answer as the parameter does.
        weight: Tensor = args[0]
        return effective(args, differentiable=False).requires_grad_(weight.requires_grad)

    return kernel


def _function(
    effective: Callable[..., Tensor],
    gradient: Gradient | None,
    learned: int,
    passes: Callable[[Tensor], Tensor] | None,
) -> Any:
    """The operator as an autograd function.

    Args:
        effective: ``effective(arguments, differentiable=)``.
        gradient: ``None`` is straight through.
        learned: How many of the first constants are learned; only of methods with a rule.
        passes: Whether gradients pass the mask.
    """
    count = 2 + learned
    first = 0 if gradient is None else count

    def masked(grad: Tensor, saved: Sequence[Tensor]) -> Tensor:
        """What the mask lets through; ``saved`` is a mask and perhaps a threshold, or nothing."""
        if not saved:
            return grad
        mask = saved[0] if passes is None else saved[0] | passes(saved[1])
        return grad * mask.to(grad.dtype)  # a product with booleans takes torch six times as long

    class EffectiveWeight(_SingleLevelFunction):
        """Single-level, because it runs below the dispatcher.

        torch.func's transforms are already peeled off when its kernel is called.
        """

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            weight, threshold, mask, *constants = args
            ctx.constants = constants[learned:]
            kept = () if gradient is None else (weight, threshold, *constants[:learned])
            under = (mask,) if passes is None else (mask, threshold)
            saved = (*kept, *(under if mask.numel() else ()))
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)
            # A function's forward runs without gradients and tangents; another level of transforms
            # of torch.func, which the operator goes to next, has its own.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return effective(args, differentiable=True)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            grad = masked(grad, saved[first:])
            found: tuple[Tensor | None, ...] = (grad, None)
            if gradient is not None:
                found = gradient(grad, *saved[:count], *ctx.constants)
            return (*found[:2], None, *found[2:], *(None for _ in ctx.constants))

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
            """The derivative along a direction that belongs to the gradient of backward."""
            direction, saved = tangents[0], ctx.saved_tensors
            if gradient is not None:
                along = (*tangents[:2], *tangents[3 : 3 + learned])
                direction = _transposed(gradient, saved[:count], ctx.constants, along)
            if direction is None:
                return None
            return masked(direction, saved[first:]) if saved[first:] else direction.clone()

    return EffectiveWeight


def _transposed(
    gradient: Gradient,
    inputs: Sequence[Tensor],
    constants: Sequence[Any],
    tangents: Sequence[Tensor | None],
) -> Tensor | None:
    """``J v`` from the rule for ``Jᵀ u``, which is linear in ``u``: the gradient of ``vᵀ Jᵀ u``.

    Args:
        gradient: The rule.
        inputs: Weight, threshold and what else is learned.
        constants: The rule's other arguments.
        tangents: Of the inputs.
    """
    plain = [tensor.detach() for tensor in inputs]
    with torch.enable_grad():
        probe = torch.zeros_like(plain[0], requires_grad=True)
        rows = gradient(probe, *plain, *constants)
        products = [
            (row * tangent.detach()).sum()
            for row, tangent in zip(rows, tangents, strict=True)
            if row is not None and tangent is not None
        ]
        return torch.autograd.grad(sum(products), probe)[0] if products else None  # type: ignore[arg-type]
