"""Export: one torchvision classification model of each family, from convert to ONNX Runtime.

Each model runs in a child process, in one thread: convert, prune to 90 % of zeros, fold, export
with all checks. Then, apart from the export's own comparison: the folded weights are loaded into a
fresh model of the class, and batches of 1 and 3 go through it and through the same ONNX file.

    python -m benchmarks.export                 # all, writes results/export.json
    python -m benchmarks.export resnet50 swin_t # these, and replaces their rows there
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import st3fx
from benchmarks import cases, record

RESULTS = record.RESULTS / "export.json"
SPARSITY = 0.9
PARITY = 1e-4
MODELS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large",
    "regnet_y_400mf", "regnet_x_400mf", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip


def main() -> None:
    """Run the models that are named, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    rows = _known(options.output) if options.models else {}
    for name in options.models or MODELS:
        rows[name] = run_child(name, options.timeout)
        print(json.dumps(rows[name]), file=sys.stderr, flush=True)
        document = {"environment": record.environment(threads=1), "models": list(rows.values())}
        record.write(options.output, document)
    show(list(rows.values()))


def _known(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {row["model"]: row for row in json.loads(path.read_text())["models"]}


def run_child(name: str, timeout: float) -> dict[str, Any]:
    """One model in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.export", "--child", name]
    single = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout, env=single
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "ok": False, "error": f"took more than {timeout:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"model": name, "ok": False, "error": lines[-1][:300]}
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def measure(name: str) -> dict[str, Any]:
    """All figures of one model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = 299 if name == "inception_v3" else 224
    images = torch.randn(2, 3, size, size)
    began = time.perf_counter()
    # Thresholds by layer: one for all layers would empty the last ones of untrained networks.
    method = st3fx.ST3(SPARSITY, normalize="sigma")
    model, sparsifier = st3fx.convert(scaled(cases.build(name)), images, method)
    sparsifier.set_sparsity(SPARSITY)
    folded = st3fx.fold(model)
    converted = time.perf_counter() - began
    calibrate(folded, images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        result = st3fx.export_onnx(folded, images, path)
        fresh = cases.build(name)
        fresh.load_state_dict(folded.state_dict(), strict=True)
        batches = {batch: compare(fresh.eval(), path, batch, size) for batch in (1, 3)}
        compact = st3fx.save_compact(folded.state_dict(), Path(folder) / "model.st3w")
    dense = sum(value.nbytes for value in folded.state_dict().values())
    relative = max(*(row["relative"] for row in batches.values()),
                   *(row.relative for row in result.parity))  # fmt: skip
    return {
        "model": name,
        "ok": relative <= PARITY and min(row["spread"] for row in batches.values()) > 0,
        "relative": float(f"{relative:.2g}"),
        "batches": {str(batch): row["relative"] for batch, row in batches.items()},
        "spread": batches[3]["spread"],
        "sparsity": round(result.zeros.sparsity, 4),
        "batch_norms": result.batch_norms,
        "batch_norms_kept": len(result.batch_norms_kept),
        "convert_seconds": round(converted, 1),
        "export_seconds": round(result.seconds, 1),
        "weight_bytes": dense,
        "onnx_bytes": result.sizes[-1].raw,
        "onnx_compressed": result.sizes[-1].compressed,
        "compact_bytes": compact,
    }


@torch.no_grad()
def scaled(model: nn.Module) -> nn.Module:
    """Weights in the scale that ST-3σ divides by, so that a sparse untrained network computes.

    Libraries' own starts would leave some layers without a weight at 90 %, and biases that outweigh
    what is made of the input: every comparison would hold.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "layer_scale" in name:
            parameter.fill_(0.5)
        elif parameter.dim() > 1 and name.endswith("weight"):
            nn.init.normal_(parameter, std=sum(parameter.shape) ** -0.5)
    return model


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Batch-norm statistics of this model: with those of a fresh one, nothing would get through."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    model.train()
    for _ in range(20):
        model(images)
    model.eval()


@torch.no_grad()
def compare(model: nn.Module, path: Path, batch: int, size: int) -> dict[str, float]:
    """Largest difference over the largest output, and how far outputs depend on the input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    wanted = model(images).numpy()
    (given,) = session.run(None, {"x": images.numpy()})
    other = model(images.flip(2)).numpy()
    scale = np.abs(wanted).max()
    relative, spread = np.abs(wanted - given).max() / scale, np.abs(wanted - other).max() / scale
    return {"relative": float(f"{relative:.2g}"), "spread": float(f"{spread:.2g}")}


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table("model", "ok", "relative", "spread", "zeros", "convert s", "export s", "MB",
                  "ONNX MB", "zipped", "compact")  # fmt: skip
    for row in rows:
        if "error" in row:
            table.add_row(row["model"], "no", row["error"])
            continue
        table.add_row(
            row["model"],
            "yes" if row["ok"] else "NO",
            f"{row['relative']:.1e}",
            f"{row['spread']:.1e}",
            f"{row['sparsity']:.1%}",
            f"{row['convert_seconds']:.1f}",
            f"{row['export_seconds']:.1f}",
            f"{row['weight_bytes'] / 1e6:.1f}",
            f"{row['onnx_bytes'] / 1e6:.1f}",
            f"{row['onnx_compressed'] / 1e6:.1f}",
            f"{row['compact_bytes'] / 1e6:.1f} ({row['weight_bytes'] / row['compact_bytes']:.1f}x)",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
