"""What dead-channel elimination removed, and what stays for which reason.

Counts channels, parameters and multiplications before and after.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from st3fx.passes.channels.analyze import Analysis
from st3fx.passes.channels.liveness import Liveness
from st3fx.passes.channels.normalize import attribute
from st3fx.passes.channels.product import Product


@dataclass(frozen=True)
class LayerChannels:
    """One weight before and after.

    Attributes:
        name: Of the weight.
        inputs: Channels that it reads, before and after; 0 after: the layer is gone.
        outputs: Channels that it computes, before and after.
        parameters: Scalars in it, before and after.
        macs: Multiplications of one sample in a dense runtime, padding counted, before and after.
        constant: Outputs that are constant before: filters without a nonzero, and what follows.
        kept: Reason -> how many of the constant outputs stay for it.
    """

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    constant: int
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything of it was removed."""
        return self.parameters[0] != self.parameters[1]


@dataclass(frozen=True)
class ChannelReport:
    """What became of a model's channels.

    Attributes:
        layers: Each weight that multiplies, in the order of the graph.
        parameters: Scalars in all parameters that the graph reads, before and after.
        operators: Calls in the graph, before and after.
    """

    layers: tuple[LayerChannels, ...]
    parameters: tuple[int, int]
    operators: tuple[int, int]

    @property
    def channels(self) -> tuple[int, int]:
        """Outputs of all layers, before and after."""
        return _pair(self.layers, "outputs")

    @property
    def macs(self) -> tuple[int, int]:
        """Multiplications of one sample in a dense runtime, before and after."""
        return _pair(self.layers, "macs")

    @property
    def constant(self) -> int:
        """Outputs that are constant before."""
        return sum(layer.constant for layer in self.layers)

    @property
    def kept(self) -> dict[str, int]:
        """Reason -> how many constant outputs stay for it."""
        total: Counter[str] = Counter()
        for layer in self.layers:
            total.update(layer.kept)
        return dict(total.most_common())

    def to_dict(self) -> dict[str, Any]:
        """This report as JSON values."""
        totals = {"channels": self.channels, "macs": self.macs, "kept": self.kept}
        return {**dataclasses.asdict(self), **totals, "constant": self.constant}


def _pair(layers: tuple[LayerChannels, ...], name: str) -> tuple[int, int]:
    pairs = [getattr(layer, name) for layer in layers]
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)


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
