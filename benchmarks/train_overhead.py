"""What sparse training costs: step time and peak memory against the same dense model.

    python -m benchmarks.train_overhead                  # the rows for the CPU, half an hour
    python -m benchmarks.train_overhead --only 0         # one of them
    python -m benchmarks.train_overhead --device cuda    # those for a GPU, eager and compiled

Dense and sparse steps (forward, backward, SGD with momentum, and for the sparse model the
sparsifier's step in the middle of its ramp) take turns in one process, so that a machine that slows
down slows both; the ratio is the median over the pairs. Peak memory is that of all tensors, from
loading the model to the third step, as torch's allocator counts it; each model has a process of its
own for it, whose peak resident size (with code and what malloc keeps) is in the JSON as well.

Of methods whose masks move, the steps are those between two moves; a step with a move is measured
beside them, with the dense gradients that it asks for. With ``probmask`` both models are
trained by Adam.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import st3fx
from benchmarks import record
from st3fx.loading.spec import load_spec
from st3fx.methods.moving import MovingMethod


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        spec: The model.
        shape: Of a batch of images.
        method: Name of the method.
        accumulate: Batches for each optimizer step.
        compiled: Whether both models are compiled.
        recompute: Whether effective weights are computed again in the backward, and not kept.
        goal: Step time against dense that is aimed at.
        groups: Granularities that take turns with single weights in the same process, or ``drawn``:
            single weights at a sparsity drawn for each step. The goal is what they cost more.
    """

    spec: str
    shape: tuple[int, int, int, int]
    method: str = "st3"
    accumulate: int = 1
    compiled: bool = False
    recompute: bool = False
    goal: float | None = None
    groups: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For the table."""
        extra = f", {self.accumulate} batches a step" if self.accumulate > 1 else ""
        shape = "x".join(map(str, self.shape))
        extra += ", compiled" if self.compiled else ""
        extra += ", recomputed" if self.recompute else ""
        groups = f" and {'groups' if self.groups[1:] else self.groups[0]}" if self.groups else ""
        return f"{self.spec} {shape}{extra}, {self.method}{groups}"


RESNET50, RESNET18 = "torchvision:resnet50", "torchvision:resnet18"
CPU = (
    Case(RESNET50, (8, 3, 128, 128), goal=1.05),
    Case(RESNET50, (8, 3, 128, 128), accumulate=4),
    Case(RESNET50, (32, 3, 224, 224), goal=1.05),
    Case("st3fx:resnet20", (128, 3, 32, 32)),
    *(Case(RESNET50, (8, 3, 128, 128), method=m) for m in ("dst", "str", "feather", "gmp")),
    Case(RESNET50, (8, 3, 128, 128), goal=0.05, groups=("block:4", "nm:2:4", "channels")),
    Case(RESNET50, (8, 3, 128, 128), goal=0.02, groups=("drawn",)),
    *(
        Case(RESNET18, (8, 3, 128, 128), method=m)
        for m in ("rigl", "granet", "acdc", "lrr", "probmask")
    ),
    Case(RESNET50, (8, 3, 128, 128), recompute=True, goal=1.15),
    Case(RESNET18, (8, 3, 128, 128)),
)
GPU = (
    Case(RESNET50, (256, 3, 224, 224), goal=1.03),
    Case(RESNET50, (256, 3, 224, 224), compiled=True, goal=1.03),
    Case("st3fx:resnet20", (128, 3, 32, 32), goal=1.10),
)


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", type=int, help="the case at this position")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    cases = CPU if options.device == "cpu" else GPU
    if options.child:
        case = cases[options.only]
        figures: dict[str, Callable[[], dict[str, Any]]] = {
            "times": lambda: times(case, options.pairs, options.device),
            "dense": lambda: memory(case, options.device, sparse=False),
            "sparse": lambda: memory(case, options.device, sparse=True),
        }
        print(json.dumps(figures[options.child]()))
        return
    path = options.output or record.RESULTS / f"train_overhead_{options.device}.json"
    rows = (
        {row["case"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    )
    for index in range(len(cases)) if options.only is None else [options.only]:
        row = run(cases[index], index, options.pairs, options.device)
        rows[row["case"]] = row
        ordered = [rows[case.name] for case in cases if case.name in rows]
        record.write(path, {"rows": ordered})  # each as it ends, beside those of earlier runs
    show(ordered)


def run(case: Case, index: int, pairs: int, device: str) -> dict[str, Any]:
    """All figures of one case, each from a process of its own."""

    def child(kind: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.train_overhead", "--child", kind]
        command += ["--only", str(index), "--pairs", str(pairs), "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result

    row = {"case": case.name, **asdict(case), **child("times")}
    dense, sparse = child("dense"), child("sparse")
    extra = sparse["peak"] - dense["peak"]
    return {
        **row,
        "environment": record.environment(device, pairs=pairs),
        "dense_memory": dense,
        "sparse_memory": sparse,
        "extra_per_weight_byte": round(extra / sparse["weight_bytes"], 3),
    }


STEPS = 1000
"""Of the schedule; its ramp is under way from the first measured step on."""


class Training:
    """A model with its optimizer, dense or sparse."""

    def __init__(
        self, case: Case, device: str, *, sparse: bool, granularity: str = "unstructured"
    ) -> None:
        torch.manual_seed(0)
        model = load_spec(case.spec, seed=0).model
        self.case, self.device = case, device
        self.sparsifier: st3fx.Sparsifier | None = None
        if sparse:
            example = torch.randn(2, *case.shape[1:])
            method = _method(case.method, granularity)
            model, self.sparsifier = st3fx.convert(
                model, example, method, total_steps=STEPS, verify=False, inplace=True,
                recompute_weights=case.recompute,
            )  # fmt: skip
        model.to(device)
        if device == "cuda":
            model.to(memory_format=torch.channels_last)
        if self.sparsifier is not None:
            self.go_to(200)
        if case.method == "probmask":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        else:
            self.optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        self.model: Callable[[Tensor], Tensor] = torch.compile(model) if case.compiled else model
        self.weight_bytes = sum(4 * p.numel() for p in model.parameters() if p.dim() > 1)
        self.x = torch.randn(case.shape, device=device)
        self.y = torch.randint(0, 10, case.shape[:1], device=device)

    def go_to(self, step: int) -> None:
        """Go on from a step of the schedule."""
        assert self.sparsifier is not None
        self.sparsifier.load_state_dict({**self.sparsifier.state_dict(), "step": step})

    def seconds_of_a_move(self) -> float:
        """Of the next step at which masks move."""
        assert self.sparsifier is not None
        method, now = self.sparsifier.method, self.sparsifier.steps
        assert isinstance(method, MovingMethod)
        self.go_to(next(n for n in range(now + 1, STEPS) if method.moves_at(n, STEPS)) - 1)
        return self.seconds(1)

    def step(self) -> None:
        """One optimizer step."""
        for _ in range(self.case.accumulate):
            with self._precision():
                loss = nn.functional.cross_entropy(self.model(self.x), self.y)
                if self.sparsifier is not None:
                    loss = loss + self.sparsifier.penalty()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.sparsifier is not None:
            self.sparsifier.step()

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self.device == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    def seconds(self, steps: int) -> float:
        """Of one step, the mean over some."""
        began = _now(self.device)
        for _ in range(steps):
            self.step()
        return (_now(self.device) - began) / steps


def _method(name: str, granularity: str) -> st3fx.Method:
    if granularity == "drawn":
        return st3fx.methods.create(name, schedule=st3fx.CubicSchedule(draw=(0.5, 0.95)))
    return st3fx.methods.create(name, granularity=granularity)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def times(case: Case, pairs: int, device: str) -> dict[str, Any]:
    """Seconds of a dense and of a sparse step, in turns."""
    dense = Training(case, device, sparse=False)
    sparse = Training(case, device, sparse=True)
    others = [Training(case, device, sparse=True, granularity=g) for g in case.groups]
    one = max(training.seconds(2) for training in (dense, sparse, *others))
    steps = max(1, round((0.3 if device == "cpu" else 1.0) / one))
    measured = [
        [training.seconds(steps) for training in (dense, sparse, *others)] for _ in range(pairs)
    ]
    moves: dict[str, Any] = {}
    if sparse.sparsifier is not None and isinstance(sparse.sparsifier.method, MovingMethod):
        turns = [(dense.seconds(1), sparse.seconds_of_a_move()) for _ in range(pairs)]
        moves = {"ratio_of_a_move": record.spread([move / one for one, move in turns])}
    return {
        **moves,
        "dense_seconds": record.spread([d for d, *_ in measured]),
        "sparse_seconds": record.spread([s for _, s, *_ in measured]),
        "ratio": record.spread([s / d for d, s, *_ in measured]),
        "of_groups": {
            name: {
                "ratio": record.spread([turn[index] / turn[0] for turn in measured]),
                "more": record.spread([(turn[index] - turn[1]) / turn[0] for turn in measured]),
            }
            for index, name in enumerate(case.groups, start=2)
        },
    }


def memory(case: Case, device: str, *, sparse: bool) -> dict[str, int]:
    """Peak bytes up to the third step."""
    if device == "cuda":
        training = _trained(case, device, sparse=sparse)
        peak = torch.cuda.max_memory_allocated()
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            training = _trained(case, device, sparse=sparse)
        events = profiler.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        peak = max(itertools.accumulate(change for _, change in changes))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak, "peak_resident": resident, "weight_bytes": training.weight_bytes}


def _trained(case: Case, device: str, *, sparse: bool) -> Training:
    training = Training(case, device, sparse=sparse)
    for _ in range(3):
        training.step()
    return training


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table("case", "dense s", "sparse s", "ratio", "quartiles", "goal", "extra memory")
    for row in rows:
        ratio = row["ratio"]
        table.add_row(
            row["case"],
            f"{row['dense_seconds']['median']:.4f}",
            f"{row['sparse_seconds']['median']:.4f}",
            f"{ratio['median']:.3f}",
            f"{ratio['q1']:.3f} – {ratio['q3']:.3f}",
            f"{row['goal']:.2f}" if row["goal"] and not row.get("of_groups") else "",
            f"{row['extra_per_weight_byte']:.2f} x weights",
        )
        if "ratio_of_a_move" in row:
            move = row["ratio_of_a_move"]
            quartiles = f"{move['q1']:.3f} – {move['q3']:.3f}"
            table.add_row("  with a move", "", "", f"{move['median']:.3f}", quartiles, "", "")
        for name, found in row.get("of_groups", {}).items():
            ratio, more = found["ratio"], f"{found['more']['median']:+.3f}, goal +{row['goal']:.2f}"
            quartiles = f"{ratio['q1']:.3f} – {ratio['q3']:.3f}"
            table.add_row(f"  {name}", "", "", f"{ratio['median']:.3f}", quartiles, more, "")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
