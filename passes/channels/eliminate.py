"""Dead-channel elimination on an exported program; see the package for what it does."""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from st3fx.passes.channels.analyze import Analysis
from st3fx.passes.channels.branches import replace_branches
from st3fx.passes.channels.liveness import Liveness
from st3fx.passes.channels.measure import report, snapshot
from st3fx.passes.channels.normalize import normalize
from st3fx.passes.channels.report import ChannelReport
from st3fx.passes.channels.shrink import shrink


def eliminate(program: ExportedProgram) -> tuple[fx.GraphModule, ChannelReport]:
    """Remove channels that are constant or that nothing reads.

    Args:
        program: Of a model in eval mode, as ``torch.export.export`` gives it; not changed.

    Returns:
        A graph that computes the same from the same inputs, and what was removed. Its parameters
        have the model's names; each that was cut or changed is a new tensor. It has no nodes'
        values of a trace: they would be those of other shapes.
    """
    module = program.run_decompositions({}).module()
    assert isinstance(module, fx.GraphModule)
    with torch.no_grad():
        return _eliminate(module)


def _eliminate(module: fx.GraphModule) -> tuple[fx.GraphModule, ChannelReport]:
    normalize(module)
    first = Analysis(module)
    before = snapshot(module, first)
    liveness = Liveness(replace_branches(module, first))
    shrink(module, liveness)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        for key in ("val", "tensor_meta", "example_value"):
            node.meta.pop(key, None)
    module.graph.lint()
    # Made anew, it has what the graph reads and nothing else.
    return fx.GraphModule(module, module.graph), report(before, module, liveness)
