"""Small files, quantized; and how ONNX Runtime runs them."""

from __future__ import annotations

import collections
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from st3fx.quantization.calibrate import Ranges, find_ranges
from st3fx.quantization.qdq import Source, quantized, read_source
from st3fx.quantization.settings import Settings

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Made:
    """A file in fp32 and what quantizes it."""

    source: Source
    ranges: Ranges
    feeds: Sequence[dict[str, Array]]

    def quantized(self, kept: Collection[str] = (), weight_range: str = "safe") -> onnx.ModelProto:
        """The file of integers, which ``onnx.checker`` accepts."""
        model = quantized(self.source, self.ranges, kept, weight_range)
        onnx.checker.check_model(model, full_check=True)
        return model


def make(model: ir.Model, folder: Path, *shape: int, batches: int = 4, **settings: Any) -> Made:
    """Calibrate a graph of one input on normal random values."""
    path = folder / "model.onnx"
    ir.save(model, path)
    work = folder / "work"
    work.mkdir()
    source = read_source(path, work)
    generator = np.random.default_rng(0)
    name = source.model.graph.input[0].name
    feeds = [{name: generator.standard_normal(shape, np.float32)} for _ in range(batches)]
    ranges = find_ranges(source.path, feeds, source.operators(), Settings(**settings))
    return Made(source, ranges, feeds)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Initializers by name."""
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def outputs(
    model: onnx.ModelProto, feed: dict[str, Array], *, optimized: bool = True
) -> list[Array]:
    """What the stock ONNX Runtime computes."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, feed))


def run_ops(model: onnx.ModelProto, folder: Path) -> collections.Counter[str]:
    """The operators that ONNX Runtime makes of a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options)
    graph = onnx.load(folder / "optimized.onnx").graph
    return collections.Counter(node.op_type for node in graph.node)
