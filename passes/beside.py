"""Parameters that reach an output and multiply in no convolution or matrix product, with reasons.

Nothing is dense silently: every parameter with two dimensions or more that an output depends on is
a site, or it is in the plan with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from st3fx.core.sites import Site, SkippedSite
from st3fx.errors import PlanError
from st3fx.passes.observation import Observation
from st3fx.passes.operators import LOOKUPS

_SHIFTS = frozenset({"add", "sub", "rsub", "add_", "sub_", "cat", "stack", "where", "copy_"})
_SCALES = frozenset({"mul", "div", "mul_", "div_", "addcmul", "pow"})
_NORMS = frozenset(
    {"native_layer_norm", "native_batch_norm", "native_group_norm", "_native_batch_norm_legit"}
) | {"cudnn_batch_norm", "_fused_rms_norm", "_batch_norm_with_update"}


def beside(model: nn.Module, observation: Observation) -> list[SkippedSite]:
    """Those that nothing multiplies with, in the order of the model's parameters."""
    others = observation.reached() - observation.multiplied().keys()
    return [
        SkippedSite(name, tuple(parameter.shape), _op(name, observation), _reason(
            name, tuple(parameter.shape), observation
        ))
        for name, parameter in model.named_parameters()
        if name in others and parameter.dim() > 1
    ]  # fmt: skip


def _op(name: str, observation: Observation) -> str:
    """``none`` for what is no multiplication; the name of an operator that may be one."""
    custom = [use for use in observation.other_uses.get(name, ()) if "::" in use]
    return custom[0] if custom else "none"


def _reason(name: str, shape: tuple[int, ...], observation: Observation) -> str:
    uses = observation.other_uses.get(name, set())
    words = ", ".join(sorted(uses))
    if name in observation.unseen or "NumPy" in uses:
        return "reaches an output where st3fx cannot follow it (NumPy, a foreign library)"
    if not uses:
        return "reaches an output without meeting an activation"
    if uses <= LOOKUPS:
        return f"its rows are looked up ({words}): no product"
    if any("::" in use for use in uses):
        return f"given to {words}, an operator that st3fx does not know"
    if uses <= _NORMS | _SHIFTS:
        return f"scales or shifts activations one by one ({words}): no product"
    hint = "; as a matrix product it could be sparse" if sum(size > 1 for size in shape) > 1 else ""
    if uses <= _NORMS | _SHIFTS | _SCALES:
        return f"multiplied elementwise ({words}): no matrix product{hint}"
    return f"read by {words}: no convolution or matrix product"


def require_complete(
    model: nn.Module,
    observation: Observation,
    sites: Iterable[Site],
    skipped: Iterable[SkippedSite],
) -> None:
    """Every parameter that reaches an output is in the plan.

    Raises:
        PlanError: With the first that is not, which is an error of st3fx.
    """
    named = {item.name for item in skipped}
    named |= {name for site in sites for name in (*site.parameters, *site.aliases)}
    known = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in named}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name in observation.reached() and id(parameter) not in known:
            raise PlanError(
                f"{name} {tuple(parameter.shape)} reaches an output and is in no list of the plan: "
                "an error of st3fx, please report it"
            )
