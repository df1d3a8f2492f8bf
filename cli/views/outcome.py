"""What a fold or an export did, as a person reads it.

The end of a run, as a person reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from st3fx.cli.views.tables import console, print_channels, print_kernels
from st3fx.cli.views.words import duration, percent
from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.export.result import ExportResult, FoldResult, Port, Size, Zeros
    from st3fx.training.report import TrainResult


def print_summary(result: TrainResult) -> None:
    """Accuracy, sparsity and files."""
    out = console()
    out.print(Text(_verdict(result)), soft_wrap=True)
    for name in result.empty:
        out.print(Text(f"{name} has no weight left"), soft_wrap=True)
    if result.files:
        out.print(Text(f"\n{result.folder}/"), soft_wrap=True)
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right", no_wrap=True)
        table.add_column(overflow="fold")
        for name, size in result.files.items():
            table.add_row(Text(f"  {name}"), Text(size_text(size)), Text(_about(name, result)))
        out.print(table)


def _about(name: str, result: TrainResult) -> str:
    if name == "folded.safetensors":
        compressed, dense = size_text(result.compressed_bytes), size_text(result.dense_bytes)
        return f"the weights alone, zeros where pruned; {compressed} compressed, {dense} dense"
    return {"model.st3fx": "the trained model, for the other commands"}.get(name, "")


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


def size_text(size: int) -> str:
    """``152 kB``, ``1.1 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def print_fold(result: FoldResult) -> None:
    """Sparsity and sizes."""
    out = console()
    print_channels(result.channels)
    out.print(_size_table(result.sizes))
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
    rows = [(kind, port.name, port.dtype.lower(), _shape(port)) for kind, port in ports]
    out.print(_table("graph", ("", "name", "type", "shape"), rows))
    if result.parity:
        calls = [
            (p.inputs, str(p.batch), f"{p.absolute:.2g}", f"{p.relative:.2g}")
            for p in result.parity
        ]
        columns = ("inputs", "batch", "largest difference", "relative")
        out.print(_table("ONNX Runtime against PyTorch", columns, calls))
    print_channels(result.channels)
    if result.sparse is not None:
        print_kernels(result.sparse)
    out.print(_size_table(result.sizes))
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


def _size_table(sizes: Sequence[Size]) -> Table:
    raw, compressed = sizes[0].raw, sizes[0].compressed
    rows = [
        (s.name, size_text(s.raw), _ratio(raw, s.raw), size_text(s.compressed),
         _ratio(compressed, s.compressed))
        for s in sizes
    ]  # fmt: skip
    return _table("sizes", ("", "raw", "smaller", "compressed", "smaller"), rows)


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.2f}x" if after else ""


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    numbers = ("raw", "compressed", "smaller", "batch", "largest difference", "relative")
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _shape(port: Port) -> str:
    # A free size has a name: spaces keep it apart from the sign between sizes.
    join = "x" if all(isinstance(size, int) for size in port.shape) else " x "
    return join.join(map(str, port.shape)) or "scalar"
