"""The sparse kernels, layer by layer: time against ONNX Runtime's dense operator of the same shape.

    python -m benchmarks.kernels                         # one thread
    python -m benchmarks.kernels --threads 2 --only vgg16
    ST3FX_ISA=avx2 python -m benchmarks.kernels          # a narrower instruction set

Both operators get the same weights and take turns, a call each; the ratio is the median over the
rounds. ``peak`` is the share of the multiply-adds that this core does from registers, in the same
process, that are spent on nonzeros. ``even`` is the sparsity from which on the sparse operator wins,
interpolated between the two that enclose it. Tensors are blocked, as between two sparse layers.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks import record
from st3fx import native, runtime
from st3fx.runtime import layout
from st3fx.runtime.weights import compress

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A layer of a known network: ``size`` is height and width of its input, 0 for a linear one."""

    model: str
    channels: int
    rows: int
    kernel: int = 1
    size: int = 0
    stride: int = 1
    depthwise: bool = False

    @property
    def name(self) -> str:
        """As ``3×3 256→256 @14 s2``."""
        if not self.size:
            return f"linear {self.channels}→{self.rows}"
        kind = f"{self.kernel}×{self.kernel}{' depthwise' if self.depthwise else ''}"
        return f"{kind} {self.channels}→{self.rows} @{self.size} s{self.stride}"

    @property
    def out_size(self) -> int:
        """Height and width of the output."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1


LAYERS = (
    Layer("resnet50", 64, 64, 1, 56), Layer("resnet50", 256, 64, 1, 56),
    Layer("resnet50", 64, 256, 1, 56), Layer("resnet50", 64, 64, 3, 56),
    Layer("resnet50", 128, 128, 3, 56, 2), Layer("resnet50", 512, 128, 1, 28),
    Layer("resnet50", 128, 128, 3, 28), Layer("resnet50", 256, 512, 1, 56, 2),
    Layer("resnet50", 256, 1024, 1, 14), Layer("resnet50", 1024, 256, 1, 14),
    Layer("resnet50", 256, 256, 3, 14), Layer("resnet50", 512, 512, 3, 14, 2),
    Layer("resnet50", 2048, 512, 1, 7), Layer("resnet50", 512, 512, 3, 7),
    Layer("resnet50", 2048, 1000), Layer("vgg16", 64, 64, 3, 224), Layer("vgg16", 128, 128, 3, 112),
    Layer("vgg16", 256, 256, 3, 56), Layer("vgg16", 512, 512, 3, 28),
    Layer("vgg16", 512, 512, 3, 14), Layer("vgg16", 4096, 4096),
    Layer("mobilenet_v2", 32, 32, 3, 112, 1, True), Layer("mobilenet_v2", 96, 96, 3, 112, 2, True),
    Layer("mobilenet_v2", 144, 144, 3, 56, 1, True), Layer("mobilenet_v2", 384, 384, 3, 14, 1, True),
    Layer("mobilenet_v2", 960, 960, 3, 7, 1, True), Layer("mobilenet_v2", 96, 24, 1, 56),
    Layer("mobilenet_v2", 64, 384, 1, 14), Layer("mobilenet_v2", 320, 1280, 1, 7),
)  # fmt: skip


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", help="layers whose model or name contains this")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    native.load()
    peak = fma_peak() * options.threads
    table = Table("layer", "dense µs", *(f"{s:.0%}" for s in SPARSITIES), "peak at 90 %", "even")
    rows = []
    for layer in LAYERS:
        if options.only and options.only not in f"{layer.model} {layer.name}":
            continue
        cells = measure(layer, options.threads, options.batch, options.rounds, peak)
        even = break_even(cells)
        rows.append({**asdict(layer), "sparse": cells, "break_even": even})
        ratios = [f"{cell['ratio']['median']:.2f}" for cell in cells]
        ratios += [""] * (len(SPARSITIES) - len(ratios))
        share = next((f"{c['peak']:.0%}" for c in cells if c["sparsity"] == 0.9), "")
        dense = f"{1e6 * cells[0]['dense']['median']:.0f}"
        table.add_row(layer.name, dense, *ratios, share, "" if even is None else f"{even:.0%}")
    Console(width=120).print(table)
    name = f"kernels_{native.isa()}_{options.threads}.json"
    environment = record.environment(
        threads=options.threads, batch=options.batch, isa=native.isa(), flops=peak,
        onnxruntime=ort.__version__,
    )  # fmt: skip
    record.write(
        options.output or record.RESULTS / name, {"environment": environment, "rows": rows}
    )


def fma_peak() -> float:
    """Floating-point operations a second of one core, multiply-adds from registers."""
    run = native.load().st3fx_multiply_adds
    run.restype, run.argtypes = ctypes.c_double, [ctypes.c_int64]
    best = 0.0
    for _ in range(20):
        began = time.perf_counter()
        operations: float = run(200_000)
        best = max(best, operations / (time.perf_counter() - began))
    return best


def measure(
    layer: Layer, threads: int, batch: int, rounds: int, peak: float
) -> list[dict[str, Any]]:
    """Times at each sparsity; a depthwise layer is dense and has one."""
    generator = np.random.default_rng(0)
    shape = (layer.rows, 1 if layer.depthwise else layer.channels, layer.kernel, layer.kernel)
    full = generator.standard_normal(shape).astype(np.float32)
    order = generator.random(shape)
    cells = []
    for sparsity in (0.0,) if layer.depthwise else SPARSITIES:
        weight = full * (order >= sparsity).astype(np.float32)
        seconds = take_turns(sessions(layer, weight, threads, batch), rounds)
        positions = batch * (layer.out_size**2 if layer.size else 1)
        operations = 2 * np.count_nonzero(weight) * positions
        cells.append({
            "sparsity": sparsity,
            "ratio": record.spread([d / s for d, s in zip(*seconds, strict=True)]),
            "dense": record.spread(seconds[0]),
            "seconds": record.spread(seconds[1]),
            "peak": round(operations / float(np.median(seconds[1])) / peak, 4),
        })  # fmt: skip
    return cells


def sessions(
    layer: Layer, weight: Array, threads: int, batch: int
) -> list[tuple[ort.InferenceSession, Array]]:
    """The dense and the sparse layer, each with its input."""
    x = np.random.default_rng(1).standard_normal((batch, layer.channels)).astype(np.float32)
    if not layer.size:
        matrix = weight.reshape(layer.rows, -1)
        sparse = helper.make_node(
            "SparseLinear", ["x", *_names()], ["y"], domain=runtime.DOMAIN, features=layer.channels
        )
        gemm = helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)
        return [
            (_session(gemm, {"weight": matrix}, threads), _aligned(x)),
            (_session(sparse, _sparse(matrix), threads), _aligned(x)),
        ]
    images = np.broadcast_to(x[..., None, None], (*x.shape, layer.size, layer.size)).copy()
    window = {
        "kernel_shape": (layer.kernel,) * 2,
        "strides": (layer.stride,) * 2,
        "pads": (layer.kernel // 2,) * 4,
    }
    groups = layer.channels if layer.depthwise else 1
    conv = helper.make_node("Conv", ["x", "weight"], ["y"], group=groups, **window)
    own = {"channels": layer.channels, "input_layout": "blocked", "output_layout": "blocked"}
    op, inputs = ("DepthwiseConv", ["weight"]) if layer.depthwise else ("SparseConv", _names())
    node = helper.make_node(op, ["x", *inputs], ["y"], domain=runtime.DOMAIN, **window, **own)
    constants = {"weight": weight} if layer.depthwise else _sparse(weight)
    return [
        (_session(conv, {"weight": weight}, threads), _aligned(images)),
        (_session(node, constants, threads), _aligned(layout.to_blocked(images))),
    ]


def take_turns(
    pair: list[tuple[ort.InferenceSession, Array]], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call, the sessions taking turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 2):
        for (session, x), taken in zip(pair, seconds, strict=True):
            began = time.perf_counter()
            session.run(None, {"x": x})
            if i >= 2:  # the first ones warm up
                taken.append(time.perf_counter() - began)
    return seconds


def break_even(cells: list[dict[str, Any]]) -> float | None:
    """The sparsity at which both take the same time; None if the measured ones do not enclose it."""
    for low, high in zip(cells, cells[1:], strict=False):
        slow, fast = (cell["ratio"]["median"] for cell in (low, high))
        if slow < 1 <= fast:
            share = (1 - slow) / (fast - slow)
            return float(round(low["sparsity"] + share * (high["sparsity"] - low["sparsity"]), 3))
    return None


def _names() -> list[str]:
    return ["values", "columns", "row_starts"]


def _sparse(weight: Array) -> dict[str, NDArray[Any]]:
    sparse = compress(weight)
    return dict(zip(_names(), (sparse.values, sparse.columns, sparse.row_starts), strict=True))


def _session(node: Any, constants: dict[str, NDArray[Any]], threads: int) -> ort.InferenceSession:
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(runtime.DOMAIN, runtime.OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # An idle pool of threads that keeps spinning taxes whoever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.register_custom_ops_library(runtime.library())
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _aligned(array: Array) -> Array:
    """A copy at a multiple of 64 bytes, as ONNX Runtime's own tensors are."""
    memory = np.empty(array.nbytes + 64, dtype=np.uint8)
    begin = -memory.ctypes.data % 64
    copy = memory[begin : begin + array.nbytes].view(np.float32).reshape(array.shape)
    copy[...] = array
    return copy


if __name__ == "__main__":
    main()
