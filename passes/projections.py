"""Weights that a layer's own forward projects before it multiplies: max norm, masks, clamps.

The projected values are written back to the parameter, so that the optimizer goes on from them. In
the layer's graph that is a weight which is computed from itself. It can be a site where nobody else
writes to the parameter, and where projecting twice is projecting once: then it does not matter how
often the weight is looked at between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from st3fx.core.graphs import CompiledGraph
from st3fx.core.hooks import has_hooks
from st3fx.core.kinds import Saved
from st3fx.core.state import preserved
from st3fx.errors import TraceError
from st3fx.passes.writes import writes_in


def require_projection(
    module: nn.Module, graph: fx.Graph, needed: Sequence[fx.Node], compute: CompiledGraph
) -> None:
    """Refuse a forward whose writes to its weight are more than a projection.

    Args:
        module: The layer; left as it was.
        graph: Its forward.
        needed: The nodes that the computed weight is made of.
        compute: (module) -> the weight.

    Raises:
        TraceError: With what is wrong.
    """
    parameters = dict(module.named_parameters())
    writes = {name: nodes for name, nodes in writes_in(graph).items() if name in parameters}
    if not writes:
        return
    if len(writes) > 1:
        raise TraceError(f"before it multiplies: its forward writes to {', '.join(writes)}")
    ((name, nodes),) = writes.items()
    if not set(nodes) <= set(needed):
        raise TraceError(f"before it multiplies, and its forward writes to {name} after reading it")
    if has_hooks(module):
        raise TraceError(f"before it multiplies: its forward writes to {name}, and it has hooks")
    if not _stays(module, parameters[name], compute):
        raise TraceError(
            f"before it multiplies: its forward writes other values to {name} in each call"
        )


def _stays(module: nn.Module, parameter: Tensor, compute: CompiledGraph) -> bool:
    """Whether the weight, computed from what the forward has written, is the same."""
    saved = Saved(parameter)
    with preserved(module), torch.no_grad():
        try:
            first = compute(module.eval())
            if first.shape != parameter.shape:
                return False
            parameter.copy_(first)
            # A norm of what was scaled to it may be off by its rounding.
            error = (compute(module) - first).abs()
            return bool((error <= 8 * torch.finfo(first.dtype).eps * first.abs()).all())
        finally:
            saved.restore()
