"""Which layers cost most in integers, and how many of them have to stay in fp32.

Each layer is tried in fp32 by itself, in a file that is else of integers: what its outputs gain,
in decibels, is its rank. Then as many as needed are left in fp32, in that order. Whether ``k`` are
enough is measured at 0, 1, 2, 4, … and by halving between the last two: a search of 54 layers takes
at most 13 scores, and finds the least ``k`` where a larger one is never worse.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from st3fx.passes.onnx.values import Array
from st3fx.quantization.calibrate import Feed
from st3fx.quantization.layers import Layer
from st3fx.quantization.measure import compare, opened_model
from st3fx.quantization.qdq import DEQUANTIZED, Source, forget_unread, protect_floats

_FLOATS = ".fp32"


def gains(
    model: onnx.ModelProto,
    without: Callable[[Layer], onnx.ModelProto],
    layers: Sequence[Layer],
    feeds: Sequence[Feed],
    expected: Sequence[Mapping[str, Array]],
    path: Path,
    loose: Collection[str] = (),
) -> dict[str, float]:
    """What the worst output gains where one layer is in fp32.

    Args:
        model: The file of integers.
        without: Gives the same with one layer in fp32.
        layers: To try; they are in integers.
        feeds: Calls.
        expected: Outputs of the fp32 file at these.
        path: Of a file for trials.
        loose: Outputs that are left out where they have another size.

    Returns:
        Name of each layer -> decibels; negative where it loses. Nothing where no output has real
        numbers.
    """

    def sqnr(tried: onnx.ModelProto) -> float | None:
        return compare(expected, opened_model(tried, path), feeds, loose).worst[1]

    before = sqnr(model)
    if before is None:
        return {}
    found = {layer.name: sqnr(without(layer)) for layer in layers}
    return {name: value - before for name, value in found.items() if value is not None}


def in_fp32(model: onnx.ModelProto, source: Source, layer: Layer) -> onnx.ModelProto:
    """A copy of a file of integers that multiplies with the fp32 weight and bias of one layer.

    Its input and output are rounded as before where a neighbour in integers rounds them.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    constants = {item.name: item for item in source.model.graph.initializer}
    added: set[str] = set()
    for node in graph.node:
        if len(node.input) < 2 or node.input[1] != layer.constant + DEQUANTIZED:
            continue
        for index in range(1, len(node.input)):
            name = node.input[index].removesuffix(DEQUANTIZED)
            if name not in constants:
                continue  # a bias that two layers share: the quantizer gives each its own
            node.input[index] = name + _FLOATS
            if name not in added:
                added.add(name)
                graph.initializer.add().CopyFrom(constants[name])
                graph.initializer[-1].name += _FLOATS
    protect_floats(graph)
    forget_unread(graph)
    return model


@dataclass(frozen=True)
class Found:
    """How many layers have to stay in fp32.

    Attributes:
        kept: Their names.
        score: Of the file with these.
        tried: How many files were scored.
    """

    kept: tuple[str, ...]
    score: float
    tried: int


def least_kept(
    order: Sequence[str], score: Callable[[Collection[str]], float], least: float
) -> Found | None:
    """The shortest beginning of ``order`` that reaches a score.

    Args:
        order: Names of layers, those first that cost most.
        score: Of the file in which these layers are in fp32.
        least: The score to reach.

    Returns:
        ``None`` where not even all but one reach it.
    """
    scores: dict[int, float] = {}

    def enough(count: int) -> bool:
        if count not in scores:
            scores[count] = score(order[:count])
        return scores[count] >= least

    limit = len(order) - 1
    low, high = -1, 0  # low is too few, high is tried
    while not enough(high):
        if high >= limit:
            return None
        low, high = high, min(limit, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return Found(tuple(order[:high]), scores[high], len(scores))
