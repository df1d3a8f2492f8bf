"""Coverage: convert every torchvision model and compare it with its original.

Each model runs in a child process with a time limit. Checked, independently of the conversion's own
verification: train output and gradients under two seeds, eval output, the fold round trip at 80 %
sparsity, and a strict load of the folded weights into a fresh model.

    python -m benchmarks.coverage                 # all models, writes results/coverage.json
    python -m benchmarks.coverage resnet18 swin_t # these, and replaces their rows there
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import st3fx
from benchmarks import cases, record

RESULTS = record.RESULTS / "coverage.json"
SPARSITY = 0.8


def main() -> None:
    """Run the models that are named, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    rows = []
    for name in options.models or cases.names():
        rows.append(run_child(name, options.timeout))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        save(rows, options.output, keep=bool(options.models))
    show(rows)


def save(rows: list[dict[str, Any]], path: Path, *, keep: bool) -> None:
    """Write what there is so far, with what it was measured on; ``keep`` the other models' rows."""
    if keep and path.exists():
        new = {row["model"]: row for row in rows}
        old = json.loads(path.read_text())["models"]
        known = {row["model"] for row in old}
        rows = [new.get(row["model"], row) for row in old]
        rows += [row for name, row in new.items() if name not in known]
    record.write(path, {"environment": record.environment(), "models": rows})


def run_child(name: str, timeout: float) -> dict[str, Any]:
    """One model in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--child", name]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"model": name, "ok": False, "error": f"took more than {timeout:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"model": name, "ok": False, "error": lines[-1][:200]}
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row


def measure(name: str) -> dict[str, Any]:
    """All checks for one model."""
    warnings.simplefilter("ignore")
    if name.startswith("mvit"):
        # With several, its indexed position tables have other gradients at each run.
        torch.set_num_threads(1)
    torch.manual_seed(0)
    original = cases.build(name)
    args, kwargs = cases.inputs(name)
    began = time.perf_counter()
    converted, sparsifier = st3fx.convert(
        original, args, st3fx.ST3(SPARSITY), example_kwargs=kwargs, total_steps=10
    )
    seconds = time.perf_counter() - began
    plan = converted.st3fx_plan
    assert isinstance(plan, st3fx.SparsityPlan)
    reached, missing = prunable(original, plan)
    checks = {
        **{f"train, seed {seed}": same_training(original, converted, args, kwargs, seed)
           for seed in (0, 1)},
        "eval": same_eval(original, converted, args, kwargs),
        **fold_checks(name, original, converted, sparsifier, args, kwargs),
    }  # fmt: skip
    return {
        "model": name,
        "ok": all(checks.values()) and not missing,
        "islands": len(plan.islands),
        "one_island": len(plan.islands) == 1 and plan.islands[0].name == "",
        "opaque": len(plan.opaque),
        "sites": len(plan.sites),
        "site_parameters": plan.numel,
        "prunable_reached": round(reached, 6),
        "skipped": [f"{item.name}: {item.reason}" for item in plan.skipped],
        "missing": missing,
        "checks": checks,
        "convert_seconds": round(seconds, 2),
    }


def prunable(model: nn.Module, plan: st3fx.SparsityPlan) -> tuple[float, list[str]]:
    """Share of prunable scalars in sites, and the prunable weights that the plan does not name.

    Counted from the module types, without the tracker: weights of convolutions, linear layers
    (with their subclasses) and attention's joint projections.
    """
    named = {name for site in plan.sites for name in (site.name, *site.aliases, *site.parameters)}
    sparse, total = plan.numel, plan.numel + sum(item.numel for item in plan.skipped)
    skipped = {item.name for item in plan.skipped}
    missing = []
    for path, module in model.named_modules():
        attributes = ["weight"] if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) else []
        if isinstance(module, nn.MultiheadAttention):
            attributes = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        for attribute in attributes:
            if getattr(module, attribute, None) is not None:
                name = f"{path}.{attribute}"
                if name not in named and name not in skipped:
                    missing.append(name)
                    total += getattr(module, attribute).numel()
    return sparse / total, missing


def same_training(
    left: nn.Module, right: nn.Module, args: Any, kwargs: dict[str, Any], seed: int
) -> bool:
    """Equal outputs and gradients of one training step, from equal buffers."""
    results = []
    for model in (left, right):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train().zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        output = model(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
        sum(t.float().square().mean() for t in tensors if t.requires_grad).backward()  # type: ignore[union-attr]
        results.append((tensors, {n: p.grad for n, p in model.named_parameters()}))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    (left_out, left_grad), (right_out, right_grad) = results
    left.zero_grad(set_to_none=True)
    right.zero_grad(set_to_none=True)
    return all(map(equal, left_out, right_out)) and all(
        equal(grad, right_grad[name]) for name, grad in left_grad.items()
    )


@torch.no_grad()
def evaluate(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors of the eval output."""
    torch.manual_seed(0)
    leaves = pytree.tree_leaves(model.eval()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def same_eval(left: nn.Module, right: nn.Module, args: Any, kwargs: dict[str, Any]) -> bool:
    """Equal eval outputs."""
    wanted, given = evaluate(left, args, kwargs), evaluate(right, args, kwargs)
    return len(wanted) == len(given) and all(map(equal, wanted, given))


def fold_checks(
    name: str,
    original: nn.Module,
    converted: nn.Module,
    sparsifier: st3fx.Sparsifier,
    args: Any,
    kwargs: dict[str, Any],
) -> dict[str, bool]:
    """Fold at 80 % sparsity: same output, exact zeros, same keys, strict load elsewhere."""
    sparsifier.set_sparsity(SPARSITY)
    pruned = int(SPARSITY * sparsifier.plan.numel)
    sparse = evaluate(converted, args, kwargs)
    folded = st3fx.fold(converted, inplace=True)
    state = folded.state_dict()
    fresh = cases.build(name)
    fresh.load_state_dict(state)
    zeros = sum(int((p == 0).sum()) for p in folded.parameters())
    return {
        "fold output": all(map(equal, sparse, evaluate(folded, args, kwargs))),
        "fold zeros": zeros >= pruned - 1,
        "fold keys": list(state) == list(original.state_dict()),
        "fold class": type(folded) is type(original),
        "fresh output": all(map(equal, sparse, evaluate(fresh, args, kwargs))),
    }


def equal(left: Tensor | None, right: Tensor | None) -> bool:
    """``torch.equal``, with NaNs equal to each other."""
    if left is None or right is None:
        return left is right
    if left.shape != right.shape:
        return False
    return torch.equal(left, right) or torch.equal(left.nan_to_num(), right.nan_to_num())


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table and the totals."""
    table = Table("model", "ok", "islands", "opaque", "sites", "reached", "s", "failed or skipped")
    for row in rows:
        failed = [check for check, passed in row.get("checks", {}).items() if not passed]
        notes = failed + row.get("missing", []) + row.get("skipped", [])
        table.add_row(
            row["model"],
            "yes" if row["ok"] else "NO",
            str(row.get("islands", "")),
            str(row.get("opaque", "")),
            str(row.get("sites", "")),
            f"{row['prunable_reached']:.2%}" if "prunable_reached" in row else "",
            str(row.get("convert_seconds", "")),
            row.get("error") or "; ".join(notes)[:100],
        )
    console = Console(width=160)
    console.print(table)
    done, one = sum(row["ok"] for row in rows), sum(bool(row.get("one_island")) for row in rows)
    console.print(f"{done} of {len(rows)} convert with parity, {one} as one island")


if __name__ == "__main__":
    main()
