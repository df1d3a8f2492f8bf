"""What share of a model's prunable weights a plan reaches.

Prunable is every parameter that multiplies: what the plan lists, and what is found here beside it,
from the types of the modules alone: weights of convolutions, linear layers (with their subclasses)
and attention's joint projections. A weight that a plan does not even name is *missing*.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

import st3fx

TIED = "tied: an embedding reads its rows too"
INPUT = "the product with another weight, as its input"
"""Reasons for which a parameter is no weight that could be pruned."""


@dataclass(frozen=True)
class Reached:
    """Scalars of a model's prunable weights.

    Attributes:
        sparse: In sites.
        total: In all weights that multiply in the example, but for tied embeddings.
        tied: In embeddings that stay dense by default, because rows are read from them.
        inputs: In learned inputs (queries, position tables), which weights multiply.
        unused: In layers that the example does not reach, and in what no product reads (tables of
            embeddings, positions, scales).
        missing: Names of weights that the plan does not name.
    """

    sparse: int
    total: int
    tied: int
    inputs: int
    unused: int
    missing: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the prunable scalars that is in sites."""
        return self.sparse / self.total if self.total else 1.0


def reached(model: nn.Module, plan: st3fx.SparsityPlan) -> Reached:
    """Count, against the original model."""
    named = {name for site in plan.sites for name in (site.name, *site.aliases, *site.parameters)}
    named |= {item.name for item in plan.skipped}
    known = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in named}
    missing = {
        name: parameter.numel()
        for name, parameter in _of_known_types(model)
        if name not in named and id(parameter) not in known
    }
    tied, inputs = (
        sum(item.numel for item in plan.skipped if reason in item.reason)
        for reason in (TIED, INPUT)
    )
    unused = sum(item.numel for item in plan.skipped if item.op == "none")
    left = sum(item.numel for item in plan.skipped) - tied - inputs - unused
    total = plan.numel + left + sum(missing.values())
    return Reached(plan.numel, total, tied, inputs, unused, tuple(missing))


def _of_known_types(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    found = []
    for path, module in model.named_modules():
        attributes: tuple[str, ...] = ()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            attributes = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            attributes = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        for attribute in attributes:
            parameter = module._parameters.get(attribute)
            if parameter is not None:
                found.append((f"{path}.{attribute}" if path else attribute, parameter))
    return found
