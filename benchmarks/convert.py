"""Cost of converting: time against the model's own training step, growth with depth, peak memory.

    python -m benchmarks.convert          # writes results/convert.json

Times are medians over rounds in which the variants take turns, so that a machine that slows down
slows all of them. Each model runs in a process of its own, which also gives its peak memory. The
goal without verification is three training steps and one second; the first conversion of a process
also imports what torch needs for fake tensors and custom operators, and is given apart.
``blocks:N`` is a chain of N residual blocks, for graphs of more than 20 000 nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

import st3fx
from benchmarks import record

RESULTS = record.RESULTS / "convert.json"
MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CHAINS = ("blocks:80", "blocks:320", "blocks:1280")
SHAPE = (8, 3, 128, 128)
TOKENS = (4, 64, 128)


def main() -> None:
    """Measure every depth and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.child:
        kind, name = options.child
        print(json.dumps(times(name, options.rounds) if kind == "times" else memory(name)))
        return
    rows = []
    for name in (*MODELS, *CHAINS):
        row = {"model": name, **_child("times", name, options.rounds)}
        rows.append(row if name in CHAINS else {**row, **_child("memory", name, 1)})
    show(rows)
    environment = record.environment(input=list(SHAPE), rounds=options.rounds)
    record.write(options.output, {"environment": environment, "models": rows})


def _child(kind: str, name: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.convert", "--child", kind, name]
    done = subprocess.run(
        [*command, "--rounds", str(rounds)], capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


class Block(nn.Module):
    """A residual block that splits heads by the sizes of its input, as attention does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Any:
        """Tokens of shape (batch, length, width)."""
        batch, length, width = x.shape
        heads = self.first(self.norm(x)).reshape(batch, length, 8, width // 8).relu()
        return x + self.second(heads.reshape(batch, length, width))


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A torchvision model or a chain of blocks, and one batch."""
    torch.manual_seed(0)
    if name in CHAINS:
        count = int(name.partition(":")[2])
        return nn.Sequential(*[Block(TOKENS[-1]) for _ in range(count)]), torch.randn(TOKENS)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model, torch.randn(SHAPE)


def times(name: str, rounds: int) -> dict[str, Any]:
    """Median seconds of each variant, and the medians of the ratios within a round."""
    model, images = build(name)
    variants: dict[str, Callable[[], Any]] = {
        "step": lambda: _step(model, images),
        "symbolic_trace": lambda: fx.symbolic_trace(model),
        "convert": lambda: st3fx.convert(model, images, verify=False, inplace=False),
    }
    if name in MODELS:
        variants["convert_verified"] = lambda: st3fx.convert(model, images, inplace=False)
    began = time.perf_counter()
    variants["convert"]()
    first = time.perf_counter() - began
    for variant in variants.values():
        variant()
    seconds: dict[str, list[float]] = {key: [] for key in variants}
    for _ in range(rounds):
        for key, variant in variants.items():
            began = time.perf_counter()
            variant()
            seconds[key].append(time.perf_counter() - began)
    converted, _ = st3fx.convert(model, images, verify=False)
    nodes = max(len(island.graph.nodes) for island in converted.st3fx_islands)  # type: ignore[union-attr]
    turns = [dict(zip(seconds, turn, strict=True)) for turn in zip(*seconds.values(), strict=True)]
    return {
        **{f"{key}_s": statistics.median(values) for key, values in seconds.items()},
        "first_convert_s": first,
        **{
            key: statistics.median(map(ratio, turns))
            for key, ratio in RATIOS.items()
            if name in MODELS or key != "verify_steps"
        },
        "tracing_s": _tracing_seconds(model, images),
        "nodes": nodes,
    }


RATIOS: dict[str, Callable[[dict[str, float]], float]] = {
    "convert_steps": lambda row: row["convert"] / row["step"],
    "of_goal": lambda row: row["convert"] / (3 * row["step"] + 1),
    "verify_steps": lambda row: (row["convert_verified"] - row["convert"]) / row["step"],
    "symbolic_trace_ratio": lambda row: row["convert"] / row["symbolic_trace"],
}
"""Within one round; the goal of converting without verification is three steps and a second."""


def _step(model: nn.Module, images: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model(images).sum().backward()


def _tracing_seconds(model: nn.Module, images: Tensor) -> float:
    """Tracing and rewriting alone, the stages whose time should grow with the nodes."""
    marks: dict[str, float] = {}

    def mark(stage: str) -> None:
        marks[stage] = time.perf_counter()

    st3fx.convert(model, images, verify=False, progress=mark)
    best = time.perf_counter() - marks["discover"]
    for _ in range(4):
        st3fx.convert(model, images, verify=False, progress=mark)
        best = min(best, time.perf_counter() - marks["discover"])
    return best


def memory(name: str) -> dict[str, Any]:
    """Peak resident memory of a conversion with verification, beyond a training step's.

    The allocator gives freed memory back at once (see ``MALLOC_*`` below), so that the peak is what
    was held, and the step's peak, less weights and gradients, stands for the activations.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        environment = {
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "0",
        }
        os.execve(sys.executable, [sys.executable, *_arguments()], environment)
    model, images = build(name)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    base = _peak()
    _step(model, images)
    model.zero_grad(set_to_none=True)
    step = _peak() - base
    st3fx.convert(model, images)
    # `base` holds the given weights once; a step adds activations and one set of gradients.
    total = _peak() - base + weights
    activations = max(step - weights, 0)
    return {
        "weight_bytes": weights,
        "step_peak_bytes": step + weights,
        "convert_peak_bytes": total,
        "peak_over_weights": (total - activations) / weights,
    }


def _arguments() -> list[str]:
    return ["-m", "benchmarks.convert", *sys.argv[1:]]


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        "model", "nodes", "step s", "symbolic_trace s", "convert s", "= steps", "of the goal",
        "first s", "verify, steps", "trace+rewrite ms", "µs per node", "peak / weights",
    )  # fmt: skip
    for row in rows:
        verified, peak = row.get("verify_steps"), row.get("peak_over_weights")
        table.add_row(
            row["model"],
            str(row["nodes"]),
            f"{row['step_s']:.3f}",
            f"{row['symbolic_trace_s']:.3f}",
            f"{row['convert_s']:.3f}",
            f"{row['convert_steps']:.2f}",
            f"{row['of_goal']:.2f}",
            f"{row['first_convert_s']:.2f}",
            "" if verified is None else f"{verified:.2f}",
            f"{row['tracing_s'] * 1e3:.0f}",
            f"{row['tracing_s'] / row['nodes'] * 1e6:.0f}",
            "" if peak is None else f"{peak:.2f}",
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
