"""The sparse kernels, layer by layer: time against ONNX Runtime's dense operator of the same shape.

    python -m benchmarks.kernels                         # one thread
    python -m benchmarks.kernels --threads 2 --only vgg16
    ST3FX_ISA=avx2 python -m benchmarks.kernels          # a narrower instruction set
    python -m benchmarks.kernels --against old/libst3fx.so   # another build takes turns as well

Both operators get the same weights and take turns, a call each; the ratio is the median over the
rounds. ``peak`` is the share of the multiply-adds that this core does from registers, in the same
process, that are spent on nonzeros. ``even`` is the sparsity from which on the sparse operator
wins, interpolated between the two that enclose it. Tensors are blocked, as between sparse layers.
Where the cost model of this machine (``st3fx bench --calibrate``, else the defaults) would keep a
layer dense, the ratio stands in brackets; the last line counts the choices that cost time. With
``--against``, a second figure says how many times as fast as the other build's kernel this one is.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from benchmarks import layers, record
from st3fx import native, runtime
from st3fx.runtime import costs
from st3fx.runtime.calibration import load_calibration

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
TOLERATED = 1.05
_FIELDS = [field.name for field in fields(layers.Layer)]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", help="layers whose model or name contains this")
    parser.add_argument("--against", metavar="LIBRARY", help="another build of the kernels")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    native.load()
    peak = fma_peak() * options.threads
    table = Table("layer", "dense µs", *(f"{s:.0%}" for s in SPARSITIES), "peak at 90 %", "even")
    rows = []
    for layer in layers.LAYERS:
        if options.only and options.only not in f"{layer.model} {layer.name}":
            continue
        libraries = [runtime.library(), *([options.against] if options.against else [])]
        cells = measure(layer, options.threads, options.batch, options.rounds, peak, libraries)
        even = break_even(cells)
        rows.append({**asdict(layer), "sparse": cells, "break_even": even})
        ratios = [_shown(cell) for cell in cells]
        ratios += [""] * (len(SPARSITIES) - len(ratios))
        share = next((f"{c['peak']:.0%}" for c in cells if c["sparsity"] == 0.9), "")
        dense = f"{1e6 * cells[0]['dense']['median']:.0f}"
        table.add_row(layer.name, dense, *ratios, share, "" if even is None else f"{even:.0%}")
    console = Console(width=140)
    console.print(table)
    console.print(regrets(rows))
    environment = record.environment(
        threads=options.threads, batch=options.batch, isa=native.isa(), flops=peak,
        onnxruntime=ort.__version__,
    )  # fmt: skip
    output = options.output or record.of_this_core("kernels", options.threads)
    record.write(output, {"environment": environment, "rows": rows})


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
    layer: layers.Layer,
    threads: int,
    batch: int,
    rounds: int,
    peak: float,
    libraries: Sequence[str],
) -> list[dict[str, Any]]:
    """Times at each sparsity; a depthwise layer is dense and has one."""
    generator = np.random.default_rng(0)
    shape = (layer.rows, 1 if layer.depthwise else layer.channels, layer.kernel, layer.kernel)
    full = generator.standard_normal(shape).astype(np.float32)
    order = generator.random(shape)
    cells = []
    for sparsity in (0.0,) if layer.depthwise else SPARSITIES:
        weight = full * (order >= sparsity).astype(np.float32)
        turns = layers.sessions(layer, weight, threads, batch, libraries)
        dense, sparse, *others = take_turns(turns, rounds)
        positions = batch * (layer.out_size**2 if layer.size else 1)
        operations = 2 * np.count_nonzero(weight) * positions
        cells.append({
            "sparsity": sparsity,
            "ratio": _ratio(dense, sparse),
            "dense": record.spread(dense),
            "seconds": record.spread(sparse),
            "peak": round(operations / float(np.median(sparse)) / peak, 4),
            "choice": choice(layer, int(np.count_nonzero(weight)), batch),
            **({"against": _ratio(others[0], sparse)} if others else {}),
        })  # fmt: skip
    return cells


def _ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    return record.spread([s / f for s, f in zip(slow, fast, strict=True)])


def choice(layer: layers.Layer, nonzeros: int, batch: int) -> str:
    """What the cost model takes for the layer alone: ``sparse`` or ``dense``."""
    if layer.depthwise:
        return "sparse"  # the only kernel in the blocked layout
    columns = layer.channels * layer.kernel**2
    work: costs.Work
    if layer.size:
        work = costs.ConvWork(
            layer.rows, columns, nonzeros, layer.kernel**2, layer.stride, 1,
            layer.size**2, layer.out_size**2,
        )  # fmt: skip
    else:
        work = costs.LinearWork(layer.rows, columns, nonzeros, batch)
    constants = load_calibration().costs
    sparse = costs.seconds(constants, costs.sparse_features(work, blocked=True))
    dense = costs.seconds(constants, costs.dense_features(work))
    return "sparse" if sparse < dense else "dense"


def _shown(cell: dict[str, Any]) -> str:
    ratio = f"{cell['ratio']['median']:.2f}"
    shown = ratio if cell["choice"] == "sparse" else f"({ratio})"
    return f"{shown} {cell['against']['median']:.2f}×" if "against" in cell else shown


def regrets(rows: Sequence[dict[str, Any]]) -> str:
    """The layers that the cost model makes slower than dense by more than 5 %."""
    cells = [(row, cell) for row in rows for cell in row["sparse"] if cell["choice"] == "sparse"]
    slower = [
        f"{layers.Layer(**{k: row[k] for k in _FIELDS}).name} at {cell['sparsity']:.0%}"
        for row, cell in cells
        if cell["ratio"]["median"] < 1 / TOLERATED
    ]
    return f"chosen sparse: {len(cells)}; slower than dense by more than 5 %: {slower or 'none'}"


def take_turns(
    sessions: list[tuple[ort.InferenceSession, layers.Array]], rounds: int
) -> list[list[float]]:
    """Seconds of each call, the sessions taking turns."""
    seconds: list[list[float]] = [[] for _ in sessions]
    for i in range(rounds + 2):
        for (session, x), taken in zip(sessions, seconds, strict=True):
            began = time.perf_counter()
            session.run(None, {"x": x})
            if i >= 2:  # the first ones warm up
                taken.append(time.perf_counter() - began)
    return seconds


def break_even(cells: list[dict[str, Any]]) -> float | None:
    """The sparsity at which both take the same time; None if those measured do not enclose it."""
    for low, high in itertools.pairwise(cells):
        slow, fast = (cell["ratio"]["median"] for cell in (low, high))
        if slow < 1 <= fast:
            share = (1 - slow) / (fast - slow)
            return float(round(low["sparsity"] + share * (high["sparsity"] - low["sparsity"]), 3))
    return None


if __name__ == "__main__":
    main()
