"""Counts channels, parameters and multiplications before and after."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

from torch import fx, nn

from st3fx.passes.channels.analyze import Analysis
from st3fx.passes.channels.liveness import Liveness
from st3fx.passes.channels.names import attribute
from st3fx.passes.channels.product import Product
from st3fx.passes.channels.report import ChannelReport, LayerChannels


@dataclass(frozen=True)
class Snapshot:
    """A graph in numbers: a row for each weight, and totals."""

    layers: dict[str, LayerChannels]
    parameters: int
    operators: int


def snapshot(module: fx.GraphModule, analysis: Analysis) -> Snapshot:
    """A graph as it is, each row with the same numbers before and after."""
    layers: dict[str, LayerChannels] = {}
    for product in analysis.coupling.products:
        parameters = product.tensor.numel()
        macs = parameters * product.work
        macs += layers[product.name].macs[0] if product.name in layers else 0
        constant = int(product.constant()[1].sum())
        inputs, outputs = product.inputs.size, product.outputs.size
        layers[product.name] = LayerChannels(
            product.name, (inputs, 0), (outputs, 0), (parameters, 0), (macs, 0), constant
        )
    return Snapshot(layers, _parameters(module), _operators(module))


def report(before: Snapshot, module: fx.GraphModule, liveness: Liveness) -> ChannelReport:
    """Compare a graph with what it was.

    Args:
        before: What it was.
        module: The graph that is left.
        liveness: What of it stayed, and why.
    """
    there = set(module.graph.nodes)
    layers = dict(before.layers)
    for product in liveness.analysis.coupling.products:
        if product.node in there:
            layers[product.name] = _after(layers[product.name], product, liveness)
    parameters, operators = _parameters(module), _operators(module)
    return ChannelReport(
        tuple(layers.values()), (before.parameters, parameters), (before.operators, operators)
    )


def _after(layer: LayerChannels, product: Product, liveness: Liveness) -> LayerChannels:
    inputs, outputs = liveness.lives(product.inputs), liveness.lives(product.outputs)
    taps = product.common.shape[3]
    parameters = int(outputs.sum() * inputs.sum(1).max() * taps)
    living = product.outputs[outputs & product.constant()[1].numpy().reshape(outputs.shape)]
    return dataclasses.replace(
        layer,
        inputs=(layer.inputs[0], int(inputs.sum())),
        outputs=(layer.outputs[0], int(outputs.sum())),
        parameters=(layer.parameters[0], parameters),
        macs=(layer.macs[0], layer.macs[1] + parameters * product.work),
        kept=dict(Counter(liveness.why(int(channel)) for channel in living)),
    )


def _parameters(module: fx.GraphModule) -> int:
    names = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    tensors = [attribute(module, name) for name in names]
    return sum(tensor.numel() for tensor in tensors if isinstance(tensor, nn.Parameter))


def _operators(module: fx.GraphModule) -> int:
    return sum(node.op == "call_function" for node in module.graph.nodes)
