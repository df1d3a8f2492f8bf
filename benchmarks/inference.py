"""Whole models by sparse kernels in ONNX Runtime, as times the dense model in the same rounds.

    python -m benchmarks.inference                       # all that this core's results lack
    python -m benchmarks.inference --only resnet50 -t 30 # this model, measured anew
    ST3FX_ISA=avx2 python -m benchmarks.inference --only resnet50

Each model has random weights, pruned by magnitude to the same sparsity in every layer; the first
convolution and depthwise ones stay dense. The dense model and its sparse files run side by side, in
processes of their own, in rounds (``st3fx.bench``); ``x`` is the median over the rounds of the
dense time over the other. Rows by OpenVINO, dense, are there where it is installed.

Channels that lose all weights are left in place unless ``--eliminate-dead-channels`` is given: in
untrained weights there are more of them than in trained ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

import st3fx
from benchmarks import openvino_call, record
from benchmarks.sparse_models import build, pruned, sample
from st3fx import native, runtime
from st3fx.bench import onnx_call
from st3fx.bench.bench_result import BenchRow, make_rows
from st3fx.bench.rounds import measure
from st3fx.bench.variant import Array, BenchSettings, Variant
from st3fx.export.export_result import ExportResult

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
THREADS = (1, 2)
MODELS = {
    "resnet50": (1, 8), "mobilenet_v2": (1,), "vgg16": (1,), "vit_b_16": (1,), "mlp": (1,),
}  # fmt: skip
"""Model -> batch sizes."""


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=MODELS, help="measure this model, known rows too")
    parser.add_argument("-t", "--seconds", type=float, default=20.0, help="for each variant")
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS)
    parser.add_argument("--sparsities", type=float, nargs="*", default=SPARSITIES)
    parser.add_argument("--eliminate-dead-channels", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    output = options.output or record.of_this_core("inference")
    rows = _known(output)
    for name in [options.only] if options.only else MODELS:
        wanted = {
            _key(name, batch, threads) for batch in MODELS[name] for threads in options.threads
        }
        if not options.only and wanted <= set(rows):
            continue
        for row in measured(name, options, set() if options.only else set(rows)):
            rows[row["key"]] = row
            environment = record.environment(threads="as in the rows")
            record.write(output, {"environment": environment, "rows": list(rows.values())})
    show(list(rows.values()))


def _known(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]}


def _key(name: str, batch: int, threads: int) -> str:
    return f"{name} batch {batch} threads {threads} {native.isa()}"


def measured(name: str, options: argparse.Namespace, known: set[str]) -> Iterator[dict[str, Any]]:
    """One row for each batch size and number of threads that is not known, as it is measured."""
    with tempfile.TemporaryDirectory(prefix="st3fx-inference-") as text:
        folder, example = Path(text), sample(name)
        st3fx.export_onnx(build(name), example, folder / "dense.onnx", verify=False)
        about = {s: _export(name, s, folder, options) for s in options.sparsities}
        settings = BenchSettings(seconds=options.seconds, providers=("CPUExecutionProvider",))
        for batch in MODELS[name]:
            for threads in options.threads:
                if _key(name, batch, threads) in known:
                    continue
                compared = _variants(folder, about, example, threads)
                timings = measure(compared, batch, threads, settings, folder, lambda stage: None)
                cells = make_rows(compared, timings, batch, threads)
                yield _row(name, batch, threads, cells, about)


def _export(name: str, sparsity: float, folder: Path, options: argparse.Namespace) -> ExportResult:
    result = st3fx.export_onnx(
        pruned(build(name), sparsity), sample(name), folder / f"{sparsity}.onnx",
        sparse_kernels=True, eliminate_dead_channels=options.eliminate_dead_channels,
    )  # fmt: skip
    assert result.plain is not None
    result.plain.unlink()
    return result


def _variants(
    folder: Path, about: dict[float, ExportResult], example: Tensor, threads: int
) -> list[Variant]:
    def inputs(batch: int) -> Sequence[Array]:
        shape = (batch, *example.shape[1:])
        return [np.random.default_rng(0).standard_normal(shape, dtype=np.float32)]

    def variant(title: str, path: Path) -> Variant:
        arguments = {
            "path": str(path),
            "providers": ["CPUExecutionProvider"],
            "custom_ops": runtime.library(),
        }
        return Variant(title, onnx_call.PREPARE, arguments, inputs)

    found = [variant("dense", folder / "dense.onnx")]
    for sparsity, result in about.items():
        assert result.sparse is not None
        found.append(variant(f"{sparsity:.0%}", result.sparse.path))
    if importlib.util.find_spec("openvino"):
        for kind in openvino_call.KINDS:
            arguments = {"path": str(folder / "dense.onnx"), "kind": kind}
            found.append(Variant(f"openvino {kind}", openvino_call.PREPARE, arguments, inputs))
    return found


def _row(
    name: str, batch: int, threads: int, cells: Sequence[BenchRow], about: dict[float, ExportResult]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": _key(name, batch, threads), "model": name, "batch": batch, "threads": threads,
        "isa": native.isa(), "cpu": record.cpu(), "dense_ms": round(cells[0].median_ms, 3),
        "rounds": cells[0].rounds,
    }  # fmt: skip
    for cell in cells[1:]:
        assert cell.ratio is not None
        ratio = {key: round(getattr(cell.ratio, key), 3) for key in ("median", "low", "high")}
        row[cell.name] = {"ms": round(cell.median_ms, 3), "x": ratio}
    for sparsity, result in about.items():
        sparse = result.sparse
        assert sparse is not None
        row[f"{sparsity:.0%}"] |= {
            "bytes": result.sizes[-1].raw,
            "relative": max(parity.relative for parity in sparse.parity),
            "sparse_layers": sparse.kernels.sparse,
            "layers": len(sparse.kernels.rows),
            "constants": sparse.kernels.constants,
            "dead_channels_removed": result.channels is not None,
        }
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """The table: how many times as fast as the dense model."""
    names = [f"{s:.0%}" for s in SPARSITIES] + [f"openvino {kind}" for kind in openvino_call.KINDS]
    names = [name for name in names if any(name in row for row in rows)]
    table = Table("model", "batch", "threads", "isa", "dense ms", *names, "MB at 90 %", "relative")
    for row in rows:
        cells = [f"{row[name]['x']['median']:.2f}" if name in row else "" for name in names]
        worst = max(row[f"{s:.0%}"]["relative"] for s in SPARSITIES if f"{s:.0%}" in row)
        size = f"{row['90%']['bytes'] / 1e6:.1f}" if "90%" in row else ""
        table.add_row(row["model"], str(row["batch"]), str(row["threads"]), row["isa"],
                      f"{row['dense_ms']:.2f}", *cells, size, f"{worst:.1e}")  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
