"""What a run, a fold or an export did, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from st3fx.cli.views.tables import console, make_grid, make_table
from st3fx.cli.views.words import duration, percent, shape_text, size_text
from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.export.export_result import ExportResult, FoldResult, Size, SparseFile, Zeros
    from st3fx.passes.channels.channel_report import ChannelReport, LayerChannels
    from st3fx.passes.onnx.sparse_kernels.kernel_report import KernelReport, KernelRow
    from st3fx.training.report import TrainResult


def print_summary(result: TrainResult) -> None:
    """Accuracy, sparsity and files."""
    out = console()
    out.print(Text(_verdict(result)), soft_wrap=True)
    if result.own:
        from st3fx.methods.targets import held

        have = "layer has a target of its own" if len(result.own) == 1 else (
            "layers have targets of their own"
        )  # fmt: skip
        how = held(result.own, result.layers)
        out.print(Text(f"{len(result.own)} {have}: {how}"), soft_wrap=True)
    for name in result.empty:
        out.print(Text(f"{name} has no weight left"), soft_wrap=True)
    if result.files:
        out.print(Text(f"\n{result.folder}/"), soft_wrap=True)
        out.print(make_grid(
            (f"  {name}", Text(size_text(size), justify="right"), _about(name, result))
            for name, size in result.files.items()
        ))  # fmt: skip


def _about(name: str, result: TrainResult) -> str:
    if name == "folded.safetensors":
        compressed, dense = size_text(result.compressed_bytes), size_text(result.dense_bytes)
        return f"the weights alone, zeros where pruned; {compressed} compressed, {dense} dense"
    return {
        "model.st3fx": "the trained model, for the other commands",
        "checkpoints/last.pt": "what --resume goes on from",
        "checkpoints/best.pt": "the same, of the best epoch",
    }.get(name, "")


def _verdict(result: TrainResult) -> str:
    before = "" if result.dense is None else f"{percent(result.dense)} dense, "
    top5 = "" if result.scores.top5 is None else f" (top-5 {percent(result.scores.top5)})"
    best = ""
    if result.best is not None and result.best[0] > result.scores.top1:
        best = f"; best {percent(result.best[0])} after epoch {result.best[1]}"
    took = f", {result.steps:,} steps in {duration(result.seconds)}" if result.seconds else ""
    return (
        f"{result.name}: top-1 {before}{percent(result.scores.top1)}{top5} at "
        f"{percent(result.sparsity)} sparsity{best}{took}"
    )


def print_fold(result: FoldResult) -> None:
    """Sparsity and sizes."""
    out = console()
    print_channels(result.channels)
    out.print(size_table(result.sizes))
    _empty(result.empty)
    share = result.elements / result.parameters if result.parameters else 0.0
    line = (
        f"{result.zeros:,} of {result.elements:,} weights are zero ({result.sparsity:.2%}), in "
        f"{plural(result.weights, 'tensor')} with {share:.1%} of all parameters; "
        f"wrote {result.path}"
    )
    out.print(Text(line), soft_wrap=True)


def print_export(result: ExportResult) -> None:
    """Inputs, outputs, checks and sizes."""
    out = console()
    ports = [("input", port) for port in result.inputs] + [("output", p) for p in result.outputs]
    rows = [(kind, port.name, port.dtype.lower(), shape_text(port.shape)) for kind, port in ports]
    out.print(make_table(("", "name", "type", "shape"), rows, title="graph"))
    if result.parity:
        calls = [
            (p.inputs, str(p.batch), f"{p.absolute:.2g}", f"{p.relative:.2g}")
            for p in result.parity
        ]
        numbers = ("batch", "largest difference", "relative")
        title = "ONNX Runtime against PyTorch"
        out.print(make_table(("inputs", *numbers), calls, numbers=numbers, title=title))
    print_channels(result.channels)
    if result.sparse is not None:
        print_kernels(result.sparse)
    out.print(size_table(result.sizes))
    _empty(result.zeros.empty)
    for line in _notes(result):
        out.print(Text(line), soft_wrap=True)
    names = ", ".join(str(path) for path in result.files)
    end = f"wrote {names} (opset {result.opset}) in {result.seconds:.1f} s"
    out.print(Text(f"{_zero_line(result.zeros)}; {end}"), soft_wrap=True)


def _zero_line(zeros: Zeros) -> str:
    return (
        f"{zeros.zeros:,} of {zeros.elements:,} weights are zero ({zeros.sparsity:.2%}), as in "
        "the folded model"
    )


def _notes(result: ExportResult) -> Iterable[str]:
    if result.batch_norms:
        yield f"folded {plural(result.batch_norms, 'batch norm')} into the layers before them"
    reasons: dict[str, list[str]] = {}
    for name, reason in result.batch_norms_kept.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"kept batch norm {', '.join(names[:3])}{more}: {reason}"
    if result.sparse_initializers:
        yield (
            f"{plural(result.sparse_initializers, 'initializer')} stored as sparse: smaller on "
            "disk, dense again in ONNX Runtime's memory"
        )
    if result.plain is not None:
        yield f"{result.plain} is the same model in ONNX's own operators alone"
    if result.baked:
        yield f"built in: {', '.join(result.baked)}"
    if not result.dynamic_batch:
        yield "the batch size is fixed"
    if not result.parity:
        yield "not compared with PyTorch"
    if result.says_little:
        yield result.says_little


def _empty(names: Sequence[str]) -> None:
    out = console()
    for name in names:
        out.print(Text(f"{name} has no weight left"), soft_wrap=True)


def size_table(sizes: Sequence[Size]) -> Table:
    """Each size, and how many times smaller than the first it is."""
    raw, compressed = sizes[0].raw, sizes[0].compressed
    rows = [
        (s.name, size_text(s.raw), _ratio(raw, s.raw), size_text(s.compressed),
         _ratio(compressed, s.compressed))
        for s in sizes
    ]  # fmt: skip
    numbers = ("raw", "smaller", "compressed", "smaller")
    return make_table(("", *numbers), rows, numbers=numbers, title="sizes")


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f}x" if after else ""


def print_kernels(result: SparseFile) -> None:
    """The choice for each layer, what it is expected to gain, the comparison with PyTorch."""
    out, report = console(), result.kernels
    if report.rows:
        out.print(_kernels_table(report))
    for line in (_choice(report), _free_sizes(result), _parity(result)):
        if line:
            out.print(Text(line), soft_wrap=True)


def _kernels_table(report: KernelReport) -> Table:
    numbers = ("shape", "zeros", "sparse", "dense")
    return make_table(
        ("layer", "op", *numbers, "choice"), map(_cells, report.rows),
        numbers=numbers, whole=numbers, title="kernels: expected µs for one sample on one thread",
    )  # fmt: skip


def _cells(row: KernelRow) -> tuple[str, ...]:
    choice = "sparse" if row.is_sparse else "dense"
    return (
        row.name.removesuffix(".weight"),
        row.op,
        shape_text(row.shape),
        "" if row.sparsity is None else f"{row.sparsity:.1%}",
        _microseconds(row.sparse_us),
        _microseconds(row.dense_us),
        f"{choice}: {row.reason}" if row.reason else choice,
    )


def _microseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def _choice(report: KernelReport) -> str:
    if not report.sparse:
        return (
            "no layer is expected to gain by a sparse kernel: the file has ONNX's own operators "
            f"alone (constants of the cost model: {report.constants})"
        )
    before = sum(row.dense_us or 0.0 for row in report.rows)
    chosen = (row.sparse_us if row.is_sparse else row.dense_us for row in report.rows)
    after = sum(time or 0.0 for time in chosen)
    return (
        f"{report.sparse} of {len(report.rows)} layers get sparse kernels: {before / after:.1f} "
        f"times as fast, as the cost model expects of these layers (constants: {report.constants})"
    )


def _free_sizes(result: SparseFile) -> str:
    if not result.parity:
        return "not compared with PyTorch"
    if result.open_inputs:
        return f"height and width of {', '.join(result.open_inputs)} are free in it"
    return "the size of its inputs is that of the example"


def _parity(result: SparseFile) -> str:
    if not result.parity:
        return ""
    worst = max(row.relative for row in result.parity)
    batches = ", ".join(str(size) for size in sorted({row.batch for row in result.parity}))
    return (
        f"ONNX Runtime with sparse kernels against PyTorch: {worst:.2g} relative at most, in "
        f"{len(result.parity)} calls at batch {batches}"
    )


ROWS = 12
"""Layers that are listed, those that lost most; --json has all."""


def print_channels(report: ChannelReport | None) -> None:
    """The layers that lost most, then the totals, then why constant channels stay."""
    if report is None:
        return
    out = console()
    changed = [layer for layer in report.layers if layer.changed]
    if changed:
        out.print(_layers_table(changed))
    if len(changed) > ROWS:
        more = f"... and {len(changed) - ROWS} more of {len(report.layers)} layers (--json has all)"
        out.print(Text(more), soft_wrap=True)
    before, after = report.channels
    line = f"removed {before - after:,} of {before:,} channels"
    line += f", {_share(report.parameters)} of the parameters"
    line += f" and {_share(report.macs)} of the multiplications of a dense runtime"
    out.print(Text(line), soft_wrap=True)
    for reason, count in report.kept.items():
        out.print(Text(f"{count:,} constant channels stay: {reason}"), soft_wrap=True)


def _layers_table(layers: list[LayerChannels]) -> Table:
    chosen = sorted(layers, key=lambda layer: layer.parameters[1] - layer.parameters[0])[:ROWS]
    rows = [
        (layer.name.removesuffix(".weight"), _pair(layer.inputs), _pair(layer.outputs),
         f"-{_share(layer.parameters)}", f"-{_share(layer.macs)}")
        for layer in layers if layer in chosen
    ]  # fmt: skip
    numbers = ("inputs", "outputs", "parameters", "MACs")
    return make_table(("layer", *numbers), rows, numbers=numbers, title="dead channels")


def _pair(sizes: tuple[int, int]) -> str:
    before, after = sizes
    return f"{before:,}" if before == after else f"{before:,} → {after:,}" if after else "gone"


def _share(sizes: tuple[int, int]) -> str:
    """How much of it is gone."""
    before, after = sizes
    return f"{(before - after) / before:.1%}" if before else "0.0%"
