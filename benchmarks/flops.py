"""Exact counts on ten torchvision models: brute force, an exported graph, and three other counters.

    python -m benchmarks.flops                  # 224×224, about two minutes
    python -m benchmarks.flops resnet50 vit_b_16

Each model has 70 % of its weights set to zero at random. ``exact`` is compared with a convolution
of ones by the mask of every convolution's weight, and with the count on the graph that
``torch.onnx.export`` writes. fvcore, ptflops and torch's FlopCounterMode know no zeros: they are
compared with the dense MACs of ``st3``, which count padding as they do, and the second table takes
the difference apart. fvcore and ptflops are asked where they are installed (pip install fvcore
ptflops).

fvcore adds its own costs of normalisation and average pooling; it has no rule for fused attention,
and says so. ptflops adds normalisation, activations, pooling and biases, most activations and pools
twice: once for the module and once more for the function that it calls. FlopCounterMode has no rule
for the fused attention of torch.nn in eval mode and leaves out its projections without a word;
without the fused operators it counts attention's products, as ``exact`` does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

import st3fx
from benchmarks import record
from st3fx.flops import aten
from st3fx.plan.example import Example

MODELS = (
    "resnet50", "resnext50_32x4d", "vgg16", "mobilenet_v2", "efficientnet_b0", "densenet121",
    "googlenet", "shufflenet_v2_x1_0", "convnext_tiny", "vit_b_16",
)  # fmt: skip
SPARSITY = 0.7


def main() -> None:
    """Count and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--output", type=Path, default=record.RESULTS / "flops.json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    output = Console(width=150)
    columns = ("model", "exact", "sparse", "brute", "ONNX", "st3", "fvcore", "ptflops", "torch",
               "count s")  # fmt: skip
    table = Table(*columns, title="MACs at 224×224; what others count is less st3", box=None)
    rows = {}
    for name in options.models:
        row = measure(name)
        rows[name] = row
        table.add_row(name, *_cells(row))
    output.print(table)
    parts = Table("model", "counter", "less st3", "of which", title="The differences", box=None)
    for name, row in rows.items():
        for counter in ("fvcore", "ptflops", "torch"):
            if row[counter] is not None:
                terms = row[counter]["terms"]
                text = ", ".join(f"{term} {count:+,}" for term, count in terms.items() if count)
                parts.add_row(name, counter, f"{sum(terms.values()):+,}", text)
    output.print(parts)
    record.write(options.output, {"environment": record.environment(), "models": rows})


def measure(name: str) -> dict[str, Any]:
    """One model on every counter."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(torch.rand_like(parameter) >= SPARSITY)
    x = torch.randn(1, 3, 224, 224)
    steps = aten.observe(model, Example.of(x))
    began = time.perf_counter()
    aten.count(steps, "exact")
    seconds = time.perf_counter() - began
    report, padded = st3fx.count_flops(model, x), st3fx.count_flops(model, x, "st3")
    counted = {
        row.name: (row.dense_macs, row.sparse_macs)
        for row in report.by_layer.values()
        if row.op.startswith("conv")
    }
    return {
        "exact": (report.dense_macs, report.sparse_macs),
        "convolutions_equal_brute_force": counted == convolutions(model, x),
        "onnx": _exported(model, x),
        "st3": padded.dense_macs,
        "str": st3fx.count_flops(model, x, "str").dense_macs,
        "activations": sum(r.dense_macs for r in report.by_layer.values() if not r.parameters),
        "fvcore": _fvcore(model, x, padded.dense_macs),
        "ptflops": _ptflops(model, padded.dense_macs),
        "torch": _torch(model, x, padded.dense_macs),
        "unknown": report.unknown,
        "count_seconds": seconds,
    }


def convolutions(model: nn.Module, x: Tensor) -> dict[str, tuple[int, int]]:
    """Name of the weight -> sums of convolutions of ones, dense and by the mask of the weight."""
    found = {}
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, _ConvNd)
        kept, bias = layer.weight, layer.bias
        sums = []
        for mask in (torch.ones_like(kept), (kept != 0).to(kept.dtype)):
            layer.weight, layer.bias = nn.Parameter(mask), None
            # Every output is a whole number below 2²⁴, which float32 has exactly.
            ones = type(layer).forward(layer, torch.ones_like(args[0]))
            sums.append(int(ones.double().sum().item()))
        layer.weight, layer.bias = kept, bias
        found[names[id(layer)]] = (sums[0], sums[1])

    layers = [module for module in model.modules() if isinstance(module, _ConvNd)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def _exported(model: nn.Module, x: Tensor) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)
        report = st3fx.count_flops(path)
    return report.dense_macs, report.sparse_macs


def _fvcore(model: nn.Module, x: Tensor, macs: int) -> dict[str, Any] | None:
    module = _installed("fvcore.nn")
    if module is None:
        return None
    counter = module.FlopCountAnalysis(model, x)
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_op = {str(name): int(count) for name, count in counter.by_operator().items()}
    products = sum(by_op.pop(name, 0) for name in ("conv", "linear", "addmm", "matmul", "bmm"))
    terms = {**by_op, "products": products - macs}
    return {
        "total": int(counter.total()),
        "terms": terms,
        "no rule": dict(counter.unsupported_ops()),
    }


def _ptflops(model: nn.Module, macs: int) -> dict[str, Any] | None:
    module = _installed("ptflops")
    if module is None:
        return None
    known = importlib.import_module("ptflops.pytorch_ops").MODULES_MAPPING
    kinds = {type(item) for item in model.modules()} & set(known)

    def total(*ignored: type[nn.Module], functions: bool = False) -> int:
        found, _ = module.get_model_complexity_info(
            model, (3, 224, 224), as_strings=False, print_per_layer_stat=False, verbose=False,
            ignore_modules=list(ignored), backend_specific_config={"count_functional": functions},
        )  # fmt: skip
        return int(found)

    whole, modules = total(functions=True), total()
    terms = {"functions and tensors": whole - modules}
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        if not issubclass(kind, _ConvNd | nn.Linear | nn.MultiheadAttention):
            terms[kind.__name__] = modules - total(kind)
    terms["products and biases"] = whole - macs - sum(terms.values())
    return {"total": whole, "terms": terms}


def _torch(model: nn.Module, x: Tensor, macs: int) -> dict[str, Any]:
    """It counts two operations for a MAC."""

    def total(*, fused: bool) -> int:
        torch.backends.mha.set_fastpath_enabled(fused)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        return int(counter.get_total_flops()) // 2

    plain, whole = total(fused=False), total(fused=True)
    terms = {"attention": plain - macs, "fused operators without a rule": whole - plain}
    return {"total": whole, "terms": terms}


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _cells(row: dict[str, Any]) -> list[str]:
    same = {True: "equal", False: "DIFFERS"}
    others = [row[name] and row[name]["total"] for name in ("fvcore", "ptflops", "torch")]
    return [
        f"{row['exact'][0]:,}",
        f"{row['exact'][1]:,}",
        same[row["convolutions_equal_brute_force"]],
        same[row["onnx"] == row["exact"]],
        f"{row['st3']:,}",
        *("" if other is None else f"{other - row['st3']:+,}" for other in others),
        f"{row['count_seconds']:.2f}",
    ]


if __name__ == "__main__":
    main()
