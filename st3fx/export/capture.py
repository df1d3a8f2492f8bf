"""Runs torch's exporter: silent, and with an error that names what ONNX cannot express.

The exporter warns, logs and prints much that does not matter, and what does matter of its errors
lies deep in their causes: the operator, and the user's own line that calls it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from st3fx.errors import ExportError, chain, describe
from st3fx.export.batch import BATCH, Dim, Names, batch_size, dimension, repeated, resized
from st3fx.export.call import Flat
from st3fx.export.settings import EXPORTERS
from st3fx.modules.state import preserved
from st3fx.whose import is_users

_LOGGERS = ("torch", "torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript",
            "onnx_ir")  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence in this thread: what matters is in the result or in the error.

    Other threads write as ever, a progress display among them.
    """
    saved = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    for logger, _ in saved:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(_Muted(sys.stderr)),
            contextlib.redirect_stdout(_Muted(sys.stdout)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in saved:
            logger.setLevel(level)


class _Muted(io.TextIOBase):
    """A stream that drops what the thread that made it writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


_TRANSLATORS = ("onnxscript", "onnx_ir", "onnx")

_FIXED = re.compile(
    r"conflicts between user-specified ranges|[Cc]onstraints violated|You marked .{0,80} as dynamic"
    r"|inconsistencies were found"
)
"""In messages about a dimension that was to be free and is not."""


_ADVICE = {
    "aten.scaled_dot_product_attention":
        "; give its tensors four dimensions: batch, heads, positions and features",
}  # fmt: skip
"""Operator that is known otherwise -> what to do."""


def is_fixed_batch(error: BaseException) -> bool:
    """Whether a capture failed because the model needs the batch size that it was shown."""
    return any(_FIXED.search(str(item)) for item in chain(error))


def is_known(error: BaseException) -> bool:
    """Whether it is an operator that ONNX lacks, or a branch on values: no batch size helps."""
    return _node(error) is not None or _branches(_root(error))


def reason(error: BaseException) -> str:
    """The innermost cause in one line, with operator and source line where they are known."""
    node = _node(error)
    where = _place(error, node)
    if node is not None and callable(node.target):
        if any(_operator(other) == "flex_attention" for other in node.graph.nodes):
            # It sorts its blocks before it computes: what fails first is not what matters.
            return (
                f"ONNX has no form of flex_attention{where}; call scaled_dot_product_attention "
                "there, with what its functions compute as attn_mask"
            )
        advice = _ADVICE.get(_operator(node), "")
        return f"ONNX has no form of {_operator(node)}{where}{advice}"
    root = _root(error)
    if _branches(root):
        return f"its forward branches on the values of a tensor{where}"
    return f"{describe(root, limit=160)}{where}"


def _branches(root: BaseException) -> bool:
    return "data-dependent" in str(root) or "DataDependent" in type(root).__name__


def _operator(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removesuffix(".default")
    return str(getattr(node.target, "__name__", node.target))


def _place(error: BaseException, node: fx.Node | None) -> str:
    """``, at model.py:12: y = torch.histc(x)``, or nothing."""
    trace = node.meta.get("stack_trace") if node is not None else None
    found = _from_text(trace) if trace else None
    # The innermost failure knows best; what wraps it was raised elsewhere.
    for item in reversed(list(chain(error))):
        found = found or _from_frames(item)
    for item in reversed(list(chain(error))):
        found = found or _from_text(str(item))
    if found is None:
        return ""
    file, line, code = found
    return f", at {_short(file)}:{line}" + (f": {code}" if code else "")


def _from_text(text: str) -> tuple[str, int, str] | None:
    """The innermost line of a printed stack that is not torch's or ours."""
    found = None
    for match in re.finditer(r'File "([^"]+)", line (\d+)[^\n]*\n?([^\n]*)', text):
        if is_users(match[1], _TRANSLATORS):
            code = match[3].strip()
            found = match[1], int(match[2]), "" if code.startswith("File ") else code
    return found


def _from_frames(error: BaseException) -> tuple[str, int, str] | None:
    import linecache  # noqa: PLC0415 (only where something failed)

    found = None
    for frame, line in _frames(error):
        file = frame.f_code.co_filename
        if is_users(file, _TRANSLATORS):
            found = file, line, linecache.getline(file, line).strip()
    return found


def _node(error: BaseException) -> fx.Node | None:
    """The node that the exporter was translating when it failed, from the variables it had."""
    for item in chain(error):
        for frame, _ in _frames(item):
            if frame.f_code.co_name == "_translate_fx_graph":
                node = frame.f_locals.get("node")
                return node if isinstance(node, fx.Node) else None
    return None


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _root(error: BaseException) -> BaseException:
    """The first failure: what the exporter wrapped."""
    item = error
    while item.__cause__ is not None:
        item = item.__cause__
    return item


def _short(file: str) -> str:
    """Relative to the working directory where that is shorter."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file


_PREFIX = "model."


@dataclass(frozen=True)
class Captured:
    """A model as the exporter sees it.

    Attributes:
        graph: As ONNX.
        program: What that was made from; its nodes have the names of the graph's values.
    """

    graph: ir.Model
    program: ExportedProgram | None


def capture(
    flat: Flat,
    name: str,
    tensors: Sequence[Tensor],
    batched: Sequence[Dim],
    *,
    opset: int | None,
    fixed_batch: bool,
    sizes: Names = (),
) -> Captured:
    """The model as an ONNX graph that is not optimised yet; initializers have state-dict names.

    Args:
        flat: The model, in eval mode.
        name: Of its class, for messages.
        tensors: The example's.
        batched: Which of their dimensions is the batch.
        opset: Of the graph, as far down as the exporter goes; ``None`` for its default.
        fixed_batch: Leave the batch size as it is in the example.
        sizes: Of each tensor the other dimensions that are free, with their names.

    Raises:
        ExportError: When the model cannot be captured, the batch cannot be free, or ONNX lacks an
            operator.
    """
    size = batch_size(tensors, batched)
    free = size is not None and not fixed_batch
    if size is not None and free:
        # One sample is no example of a batch: a size of 1 is broadcast too.
        tensors = repeated(tensors, batched, max(2, size))
    sizes = sizes or tuple({} for _ in tensors)
    tensors = resized(tensors, sizes, 0)
    places = [dimension(has) if free else None for has in batched]
    named = tuple({**({} if place is None else {place: BATCH}), **dims} or None
                  for place, dims in zip(places, sizes, strict=True))  # fmt: skip
    shapes = (named,) if any(named) else None
    # What a forward keeps of its last call (a detector its anchors) must not be of this one.
    with quiet(), preserved(flat):
        try:
            program = torch.onnx.export(
                flat,
                tuple(tensor.clone() for tensor in tensors),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=None if opset is None else max(opset, EXPORTERS),
                optimize=False,
                verbose=False,
            )
        except Exception as error:  # noqa: BLE001 (its message says what matters of the cause)
            others = [other for dims in sizes for other in dims.values()]
            raise refusal(error, flat.model, name, free=free, others=others) from None
    assert program is not None
    _rename(program.model, flat.model)
    return Captured(program.model, program.exported_program)


def refusal(
    error: Exception, model: nn.Module, name: str, *, free: bool, others: Sequence[str] = ()
) -> ExportError:
    """What an exporter's error means to the user.

    Args:
        error: The exporter's.
        model: What was to be exported.
        name: Of its class.
        free: Whether the batch was to be free.
        others: Names of other sizes that were to be.
    """
    if others and is_fixed_batch(error):
        names = " or ".join(dict.fromkeys((*([BATCH] if free else []), *others)))
        return ExportError(f"{name} works for one {names} only, that of the example: leave it out")
    if free and is_fixed_batch(error) and isinstance(model, fx.GraphModule):
        return ExportError(
            f"{name} is a graph that was captured for one batch size only: capture it again with "
            "a free one, by torch.export.export(..., dynamic_shapes=...), or export it with a "
            "fixed batch (--fixed-batch)"
        )
    if free and is_fixed_batch(error):
        return ExportError(
            f"{name} works for one batch size only, that of the example: export it with a fixed "
            "batch (--fixed-batch), take the number out of its forward, or, where the batch is "
            "another dimension of an input than the first, say so (--free INPUT:DIM=batch)"
        )
    line = f"{name} cannot be exported: {reason(error)}"
    if free and not is_known(error):
        line += "; if it is made for one batch size, export it with --fixed-batch"
    return ExportError(line)


def _rename(graph: ir.Model, model: nn.Module) -> None:
    """Take the wrapper's prefix off the initializers; a tied one gets the first of its names."""
    first: dict[int, str] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    names = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    for value in list(graph.graph.initializers.values()):
        name = value.name or ""
        short = name.removeprefix(_PREFIX)
        wanted = names.get(short, short)
        if short != name and wanted not in graph.graph.initializers:
            value.name = wanted


def io_names(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Name the graph's inputs and outputs; inner values of these names get others.

    Returns:
        Initializers that have another name now, as a parameter that is called like an argument of
        the forward: name -> name.
    """
    graph = model.graph
    assert len(graph.inputs) == len(inputs)
    assert len(graph.outputs) == len(outputs)
    ports: list[ir.Value] = [*graph.inputs, *graph.outputs]
    wanted = {*inputs, *outputs}
    values: list[Any] = [*graph.initializers.values(), *ports]
    values += [v for node in ir.traversal.RecursiveGraphIterator(graph) for v in node.outputs]
    renamed = {}
    for value in values:
        if value.name in wanted:
            name = f"{value.name}_inner"
            if value.is_initializer():
                renamed[str(value.name)] = name
            value.name = name
    for value, name in zip(ports, (*inputs, *outputs), strict=True):
        value.name = name
    return renamed
