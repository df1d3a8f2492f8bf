"""Dead channels: how much smaller and faster ONNX graphs become, and that they compute the same.

Two ways to sparse weights for each torchvision model: filters emptied at random (40 % of each
layer), and one threshold for all layers (ST-3σ) at 99 % of zeros. Each folded model is exported
with its dead channels and without, with all checks of an export; both files then run alternately in
ONNX Runtime, batch 1, one thread. Weights are random: only training shows how many filters really
empty.

    python -m benchmarks.dead_channels             # all, writes results/dead_channels.json
    python -m benchmarks.dead_channels resnet50    # these, and replaces their rows there
"""

from __future__ import annotations

import argparse
import json
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
from benchmarks.export import calibrate, scaled

RESULTS = record.RESULTS / "dead_channels.json"
WAYS = ("emptied", "st3_99")
SPARSITY = 0.99
MODELS = (
    "resnet18", "mobilenet_v2", "vgg16_bn", "shufflenet_v2_x1_0", "densenet121", "googlenet",
    "efficientnet_b0", "regnet_y_400mf", "resnet50", "inception_v3", "convnext_tiny", "vit_b_16",
)  # fmt: skip
ROUNDS = 15


def main() -> None:
    """Measure the models that are named, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = _known(options.output) if options.models else {}
    for way in options.ways:
        for name in options.models or MODELS:
            rows[f"{name} {way}"] = measure(name, way)
            print(json.dumps(rows[f"{name} {way}"]), file=sys.stderr, flush=True)
            document = {"environment": record.environment(threads=1), "rows": list(rows.values())}
            record.write(options.output, document)
    show(list(rows.values()))


def _known(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return {f"{row['model']} {row['way']}": row for row in json.loads(path.read_text())["rows"]}


def measure(name: str, way: str) -> dict[str, Any]:
    """All figures of one model."""
    torch.manual_seed(0)
    size = 299 if name == "inception_v3" else 224
    images = torch.randn(2, 3, size, size)
    model = scaled(cases.build(name))
    if way == "emptied":
        empty(model)
    else:
        method = st3fx.ST3(SPARSITY, normalize="sigma")
        converted, sparsifier = st3fx.convert(model, images, method, verify=False)
        sparsifier.set_sparsity(method.sparsity)
        model = st3fx.fold(converted)
    calibrate(model, images)
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        before = st3fx.export_onnx(model, images, whole)
        after = st3fx.export_onnx(model, images, small, eliminate_dead_channels=True)
        assert after.channels is not None
        ratios, difference = race(whole, small, images[:1])
    report = after.channels
    return {
        "model": name,
        "way": way,
        "sparsity": round(before.zeros.sparsity, 4),
        "channels": report.channels,
        "constant": report.constant,
        "kept": report.kept,
        "parameters": report.parameters,
        "macs": report.macs,
        "operators": report.operators,
        "parity_before": float(f"{max(row.relative for row in before.parity):.2g}"),
        "parity_after": float(f"{max(row.relative for row in after.parity):.2g}"),
        "difference": float(f"{difference:.2g}"),
        "bytes": [before.sizes[-1].raw, after.sizes[-1].raw],
        "faster": record.spread(ratios),
    }


@torch.no_grad()
def empty(model: nn.Module, share: float = 0.4) -> None:
    """Filters of zeros, and biases that are none."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name.endswith("weight"):
            parameter[torch.rand(len(parameter)) < share] = 0
        elif name.endswith("bias"):
            parameter.uniform_(-0.5, 0.5)


def race(whole: Path, small: Path, image: Tensor) -> tuple[list[float], float]:
    """Ratio of the times, round by round, and the largest relative difference of the outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    sessions = [
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for path in (whole, small)
    ]
    feeds = {"x": image.numpy()}
    first, second = (session.run(None, feeds)[0] for session in sessions)
    ratios = []
    for number in range(ROUNDS):
        seconds = [0.0, 0.0]
        for index in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            sessions[index].run(None, feeds)
            seconds[index] = time.perf_counter() - began
        ratios.append(seconds[0] / seconds[1])
    largest = max(float(np.abs(first).max()), float(np.finfo(np.float32).tiny))  # or all zero
    return ratios, float(np.abs(first - second).max()) / largest


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table("model", "way", "zeros", "channels", "parameters", "MACs", "parity", "faster")
    for row in rows:
        gone = {
            name: 1 - row[name][1] / row[name][0] for name in ("channels", "parameters", "macs")
        }
        table.add_row(
            row["model"],
            row["way"],
            f"{row['sparsity']:.1%}",
            *(f"-{share:.1%}" for share in gone.values()),
            f"{row['parity_before']:.1e} → {row['parity_after']:.1e}",
            f"{row['faster']['median']:.2f}x",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
