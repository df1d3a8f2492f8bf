"""The exact global threshold: time against sorting, over the weights of a ResNet-50.

    python -m benchmarks.threshold                # on the CPU
    python -m benchmarks.threshold --device cuda

Variants take turns. ``warm`` is a training step's search: the weights have moved a little since the
last one, and the sparsity has risen; ``cold`` is the first search. ``sort`` is one sort of all
scores, as the reference implementation of ST-3 does, ``numpy`` NumPy's partition of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import record
from st3fx.sparsity.threshold.search import GlobalThreshold

SPARSITY = 0.9


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = measure(options.rounds, options.device)
    base = rows["warm"]["median"]
    table = Table("variant", "median ms", "quartiles", "/ warm")
    for name, row in rows.items():
        quartiles = f"{1e3 * row['q1']:.1f} – {1e3 * row['q3']:.1f}"
        ratio = f"{row['median'] / base:.1f}"
        table.add_row(name, f"{1e3 * row['median']:.1f}", quartiles, ratio)
    Console().print(table)
    path = options.output or record.RESULTS / f"threshold_{options.device}.json"
    environment = record.environment(options.device, weights=sum(w.numel() for w in weights("cpu")))
    record.write(path, {"environment": environment, "seconds": rows})


def weights(device: str) -> list[Tensor]:
    """All convolution and linear weights of a ResNet-50."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).to(device)
    return [p.detach() for p in model.parameters() if p.dim() > 1]


def measure(rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Seconds of each variant, the variants taking turns."""
    tensors = weights(device)
    scales = [1.0] * len(tensors)
    finder = GlobalThreshold()
    sparsity = SPARSITY

    def warm() -> Tensor:
        return finder.find(tensors, scales, sparsity)

    variants: dict[str, Callable[[], object]] = {
        "warm": warm,
        "cold": lambda: GlobalThreshold().find(tensors, scales, sparsity),
        "sort": lambda: _sort(tensors, sparsity),
        "numpy": lambda: _partition(tensors, sparsity),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    warm()
    for _ in range(rounds):
        sparsity += 1e-4
        for weight in tensors:
            weight.add_(torch.randn_like(weight), alpha=1e-5)
        for name, variant in variants.items():
            began = _now(device)
            variant()
            seconds[name].append(_now(device) - began)
        assert warm().item() == _sort(tensors, sparsity).item()
    return {name: record.spread(values) for name, values in seconds.items()}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _sort(tensors: list[Tensor], sparsity: float) -> Tensor:
    values = torch.cat([weight.abs().flatten() for weight in tensors]).sort().values
    index = (len(values) - 1) * sparsity
    low, high = values[int(index)], values[min(int(index) + 1, len(values) - 1)]
    return low + (high - low) * (index - int(index))


def _partition(tensors: list[Tensor], sparsity: float) -> float:
    values = np.concatenate([weight.abs().flatten().cpu().numpy() for weight in tensors])
    index = int((len(values) - 1) * sparsity)
    return float(np.partition(values, [index, index + 1])[index])


if __name__ == "__main__":
    main()
