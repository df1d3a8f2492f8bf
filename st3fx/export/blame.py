"""What an exporter's error comes from: the operator and the user's own line."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import fx

from st3fx.core.messages import describe

_PACKAGE = str(Path(__file__).parent.parent)
_TORCH = str(Path(torch.__file__).parent)
_STANDARD = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}

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
    return any(_FIXED.search(str(item)) for item in _chain(error))


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
    for item in reversed(list(_chain(error))):
        found = found or _from_frames(item)
    for item in reversed(list(_chain(error))):
        found = found or _from_text(str(item))
    if found is None:
        return ""
    file, line, code = found
    return f", at {_short(file)}:{line}" + (f": {code}" if code else "")


def _from_text(text: str) -> tuple[str, int, str] | None:
    """The innermost line of a printed stack that is not torch's or ours."""
    found = None
    for match in re.finditer(r'File "([^"]+)", line (\d+)[^\n]*\n?([^\n]*)', text):
        if _is_users(match[1]):
            code = match[3].strip()
            found = match[1], int(match[2]), "" if code.startswith("File ") else code
    return found


def _from_frames(error: BaseException) -> tuple[str, int, str] | None:
    import linecache  # noqa: PLC0415 (only where something failed)

    found = None
    for frame, line in _frames(error):
        file = frame.f_code.co_filename
        if _is_users(file):
            found = file, line, linecache.getline(file, line).strip()
    return found


def _node(error: BaseException) -> fx.Node | None:
    """The node that the exporter was translating when it failed, from the variables it had."""
    for item in _chain(error):
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


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    item: BaseException | None = error
    while item is not None and id(item) not in seen:
        seen.add(id(item))
        yield item
        item = item.__cause__ or item.__context__


def _root(error: BaseException) -> BaseException:
    """The first failure: what the exporter wrapped."""
    item = error
    while item.__cause__ is not None:
        item = item.__cause__
    return item


def _is_users(file: str) -> bool:
    if file.startswith(("<", _PACKAGE, _TORCH)):
        return False
    packages = ("/onnxscript/", "/onnx_ir/", "/onnx/")
    if "site-packages" in file:
        return not any(name in file for name in packages)
    return not any(file.startswith(folder) for folder in _STANDARD)


def _short(file: str) -> str:
    """Relative to the working directory where that is shorter."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file
