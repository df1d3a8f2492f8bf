"""Cost of converting: time against the model's own training step, growth with depth, peak memory.

    python -m benchmarks.convert          # writes results/convert.json

Times are seconds of one core, which other work on the machine does not lengthen, and medians over
rounds in which the variants take turns. Each model runs in a process of its own, which also gives
its peak memory. The goal without verification is three training steps and one second; the first
conversion of a process also imports what torch needs for fake tensors and custom operators, and is
given apart. ``blocks:N`` is a chain of N residual blocks, for graphs of more than 20 000 nodes;
``lstm:N`` a loop of N steps over one cell, ``transformer:N`` and ``llama:N`` have N narrow layers.
"""

from __future__ import annotations

import argparse
import fnmatch
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
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

import st3fx
from benchmarks import record

RESULTS = record.RESULTS / "convert.json"
MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CHAINS = ("blocks:80", "blocks:320", "blocks:1280")
DEEP = ("lstm:300", "transformer:48", "llama:48")
SHAPE = (8, 3, 128, 128)
TOKENS = (4, 64, 128)


def main() -> None:
    """Measure every depth and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models, as a glob")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.child:
        kind, name = options.child
        print(json.dumps(times(name, options.rounds) if kind == "times" else memory(name)))
        return
    rows = _known(options.output)
    for name in fnmatch.filter((*MODELS, *CHAINS, *DEEP), options.only):
        rows[name] = {"model": name, "rounds": options.rounds}
        rows[name] |= _child("times", name, options.rounds)
        if name in MODELS:
            rows[name] |= _child("memory", name, 1)
        environment = record.environment(input=list(SHAPE), tokens=list(TOKENS))
        in_order = [rows[known] for known in (*MODELS, *CHAINS, *DEEP) if known in rows]
        record.write(options.output, {"environment": environment, "models": in_order})
    show(list(rows.values()))


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """The rows that are there; a run that was stopped goes on with ``--only``."""
    if not path.exists():
        return {}
    return {row["model"]: row for row in json.loads(path.read_text(encoding="utf-8"))["models"]}


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


class Cells(nn.Module):
    """A loop over one cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(32, 64)

    def forward(self, x: Tensor) -> Any:
        """Steps of shape (length, batch, 32)."""
        state = torch.zeros(x.shape[1], 64), torch.zeros(x.shape[1], 64)
        for step in range(x.shape[0]):
            state = self.cell(x[step], state)
        return state[0]


class Layer(nn.Module):
    """A layer of a transformer, with attention of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act, self.drop = nn.GELU(), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Any:
        """Tokens of shape (batch, length, width)."""
        batch, length, width = x.shape
        split = self.qkv(self.before(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.drop(self.out(mixed.reshape(batch, length, width)))
        return x + self.drop(self.down(self.act(self.up(self.between(x)))))


def _llama(layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - takes seconds

    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128, intermediate_size=352, num_hidden_layers=layers, vocab_size=512,
            num_attention_heads=4, num_key_value_heads=4, use_cache=False,
        )
    )  # fmt: skip
    return model


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A torchvision model, a chain of blocks or a deep model, and one batch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind, _, number = name.partition(":")
    if kind == "lstm":
        return Cells(), torch.randn(int(number), 4, 32)
    if kind == "transformer":
        return nn.Sequential(*[Layer(256, 8) for _ in range(int(number))]), torch.randn(4, 128, 256)
    if kind == "llama":
        return _llama(int(number)), torch.randint(0, 512, TOKENS[:2])
    if name in CHAINS:
        count = int(name.partition(":")[2])
        return nn.Sequential(*[Block(TOKENS[-1]) for _ in range(count)]), torch.randn(TOKENS)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model, torch.randn(SHAPE)


def times(name: str, rounds: int) -> dict[str, Any]:
    """Median seconds of each variant, and the medians of the ratios within a round."""
    model, images = build(name)
    marks: dict[str, float] = {}
    tracing: list[float] = []

    def convert() -> nn.Module:
        converted, _ = st3fx.convert(model, images, verify=False, progress=mark)
        tracing.append(time.process_time() - marks["trace"])
        return converted

    def mark(stage: str) -> None:
        marks[stage] = time.process_time()

    variants: dict[str, Callable[[], Any]] = {
        "step": lambda: _step(model, images),
        "convert": convert,
    }
    if name not in DEEP:
        variants["symbolic_trace"] = lambda: fx.symbolic_trace(model)
    if name in MODELS:
        variants["convert_verified"] = lambda: st3fx.convert(model, images)
    began = time.process_time()
    islands: Any = convert().st3fx_islands
    first = time.process_time() - began
    variants["step"]()
    seconds: dict[str, list[float]] = {key: [] for key in variants}
    for _ in range(rounds):
        for key, variant in variants.items():
            began = time.process_time()
            variant()
            seconds[key].append(time.process_time() - began)
    turns = [dict(zip(seconds, turn, strict=True)) for turn in zip(*seconds.values(), strict=True)]
    return {
        **{f"{key}_s": statistics.median(values) for key, values in seconds.items()},
        "first_convert_s": first,
        **{
            key: statistics.median(map(ratio, turns))
            for key, ratio in RATIOS.items()
            if all(part in seconds for part in NEEDED.get(key, ()))
        },
        "tracing_s": min(tracing),
        "nodes": max(len(island.graph.nodes) for island in islands),
    }


RATIOS: dict[str, Callable[[dict[str, float]], float]] = {
    "convert_steps": lambda row: row["convert"] / row["step"],
    "of_goal": lambda row: row["convert"] / (3 * row["step"] + 1),
    "verify_steps": lambda row: (row["convert_verified"] - row["convert"]) / row["step"],
    "symbolic_trace_ratio": lambda row: row["convert"] / row["symbolic_trace"],
}
"""Within one round; the goal of converting without verification is three steps and a second."""

NEEDED = {"verify_steps": ["convert_verified"], "symbolic_trace_ratio": ["symbolic_trace"]}
"""What a ratio is of, beside what is always measured."""


def _step(model: nn.Module, images: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    out = model(images)
    (out if isinstance(out, Tensor) else out[0]).sum().backward()


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
            f"{row['symbolic_trace_s']:.3f}" if "symbolic_trace_s" in row else "",
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
