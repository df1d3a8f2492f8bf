"""INT8 models by sparse kernels in ONNX Runtime, beside dense INT8, in the same rounds.

    python -m benchmarks.quantized                        # all that the results lack
    python -m benchmarks.quantized --only resnet50 -t 30  # this model, measured anew
    python -m benchmarks.quantized --only bert_base --dynamic  # with the range of each call

Models with random weights, every layer pruned to the same share of blocks of four consecutive input
channels; the first convolution and depthwise ones stay dense. All files of a row run side by side,
in processes of their own, in rounds (``st3fx.bench``): ONNX Runtime in fp32, its INT8 (the file of
``st3fx quantize``, whose zeros it does not see), OpenVINO's INT8 by ``nncf.quantize`` where both
are installed, on a CPU with AMX also without it, and at each sparsity our kernels in fp32 and in
INT8. Each kind of core has a results file of its own; a row has the machine's load, which its own
process is part of.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import st3fx
from benchmarks import openvino_call, record
from benchmarks.sparse_models import build, pruned_blocks, sample
from st3fx import native, runtime
from st3fx.bench import onnx_call
from st3fx.bench.bench_result import make_rows
from st3fx.bench.rounds import measure
from st3fx.bench.variant import Array, BenchSettings, Variant
from st3fx.commands.lower import lower_file

SPARSITIES = (0.8, 0.9, 0.95)
MODELS = {"resnet50": (1, 8), "mobilenet_v2": (1,), "vit_b_16": (1,), "bert_base": (1,)}
"""Model -> batch sizes."""

DENSE, ORT, OPENVINO = "ONNX Runtime fp32", "ONNX Runtime INT8", "OpenVINO INT8"
NO_AMX = "OpenVINO INT8, no AMX"
"""Where the CPU has AMX: the same file, with that switched off."""


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=MODELS, help="measure this model, known rows too")
    parser.add_argument("-t", "--seconds", type=float, default=20.0, help="for each variant")
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--sparsities", type=float, nargs="*", default=SPARSITIES)
    parser.add_argument("--dynamic", action="store_true", help="ranges are each call's own")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    output = options.output or record.of_this_core("quantized")
    known = json.loads(output.read_text())["rows"] if output.exists() else []
    rows = {row["key"]: row for row in known}
    for name in [options.only] if options.only else MODELS:
        skip = set() if options.only else set(rows)
        for row in measured(name, options, skip):
            rows[row["key"]] = row
            about = record.environment(threads="as in the rows", isa=native.isa())
            record.write(output, {"environment": about, "rows": list(rows.values())})
    show(list(rows.values()))


def measured(name: str, options: argparse.Namespace, known: set[str]) -> Iterator[dict[str, Any]]:
    """One row for each batch size and number of threads that is not known, as it is measured."""
    wanted = [
        (batch, threads) for batch in MODELS[name] for threads in options.threads
        if _key(name, batch, threads, options) not in known
    ]  # fmt: skip
    if not wanted:
        return
    with tempfile.TemporaryDirectory(prefix="st3fx-quantized-") as text:
        folder = Path(text)
        files = _files(name, folder, options)
        settings = BenchSettings(seconds=options.seconds, providers=("CPUExecutionProvider",))
        for batch, threads in wanted:
            variants = [_variant(title, path, sample(name)) for title, path in files.items()]
            load = os.getloadavg()[0]
            timings = measure(variants, batch, threads, settings, folder, lambda stage: None)
            cells = make_rows(variants, timings, batch, threads)
            row: dict[str, Any] = {
                "key": _key(name, batch, threads, options), "model": name, "batch": batch,
                "threads": threads, "dynamic": options.dynamic, "cpu": record.cpu(),
                "rounds": cells[0].rounds, "load": round(max(load, os.getloadavg()[0]), 1),
            }  # fmt: skip
            for cell in cells:
                times: dict[str, Any] = {
                    "ms": round(cell.median_ms, 3),
                    "bytes": files[cell.name].stat().st_size,
                }
                if cell.ratio is not None:
                    ratio = cell.ratio
                    times["x"] = [round(v, 3) for v in (ratio.median, ratio.low, ratio.high)]
                row[cell.name] = times
            yield row


def _key(name: str, batch: int, threads: int, options: argparse.Namespace) -> str:
    return f"{name} batch {batch} threads {threads}{' dynamic' if options.dynamic else ''}"


def _files(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Title -> file, those that are compared first."""
    warnings.simplefilter("ignore")
    example = sample(name)
    files = {DENSE: folder / "dense.onnx"}
    st3fx.export_onnx(build(name), example, files[DENSE], verify=False)
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
        files[OPENVINO] = openvino_call.quantized(
            files[DENSE], [example.numpy()], folder / "openvino.xml", transformer=name in _ATTENTION
        )
        if openvino_call.has_amx():
            files[NO_AMX] = files[OPENVINO]
    calibration = "dynamic" if options.dynamic else "minmax"
    for sparsity in options.sparsities:
        model = pruned_blocks(settled(build(name), example), sparsity)
        share = f"{sparsity:.0%}"
        real, whole = folder / f"{share}.fp32.onnx", folder / f"{share}.int8.onnx"
        st3fx.export_onnx(model, example, real, sparse_kernels=True, verify=False)
        st3fx.quantize(model, [example], whole, rank=False, calibration=calibration)
        files.setdefault(ORT, whole)
        files[f"{share} fp32"], files[f"{share} INT8"] = real, folder / f"{share}.sparse.onnx"
        lower_file(whole, files[f"{share} INT8"])
    return files


_ATTENTION = ("vit_b_16", "bert_base")


@torch.no_grad()
def settled(model: nn.Module, example: Tensor) -> nn.Module:
    """The model with statistics of batch norms that fit its weights."""
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model.train()(torch.cat([example] * 2))
    return model.eval()


def _variant(title: str, path: Path, example: Tensor) -> Variant:
    def inputs(batch: int) -> Sequence[Array]:
        generator = np.random.default_rng(0)
        shape = (batch, *example.shape[1:])
        if example.is_floating_point():
            return [generator.standard_normal(shape, dtype=np.float32)]
        return [generator.integers(0, 1000, shape)]

    if path.suffix == ".xml":
        newest = openvino_call.WITHOUT_AMX if title == NO_AMX else None
        about: dict[str, Any] = {"path": str(path), "kind": "f32", "newest": newest}
        return Variant(title, openvino_call.PREPARE, about, inputs)
    about = {"path": str(path), "providers": ["CPUExecutionProvider"],
             "custom_ops": runtime.library()}  # fmt: skip
    return Variant(title, onnx_call.PREPARE, about, inputs)


def show(rows: list[dict[str, Any]]) -> None:
    """The table: how many times as fast as ONNX Runtime's fp32, and file sizes at 90 %."""
    ours = [f"{sparsity:.0%} {kind}" for kind in ("fp32", "INT8") for sparsity in SPARSITIES]
    names = [ORT, OPENVINO, NO_AMX, *ours]
    names = [name for name in names if any(name in row for row in rows)]
    table = Table("model", "batch", "threads", f"{DENSE} ms", *names, "MB, 90 % INT8")
    for row in rows:
        cells = [f"{row[name]['x'][0]:.2f}" if name in row else "" for name in names]
        size = f"{row['90% INT8']['bytes'] / 1e6:.1f}" if "90% INT8" in row else ""
        title = f"{row['model']}{', dynamic' if row.get('dynamic') else ''}"
        table.add_row(title, str(row["batch"]), str(row["threads"]),
                      f"{row[DENSE]['ms']:.2f}", *cells, size)  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
