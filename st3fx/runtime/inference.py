"""Sessions of ONNX Runtime that know the sparse operators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from st3fx import native
from st3fx.errors import NativeError
from st3fx.runtime.open_model import open_model
from st3fx.runtime.operators import plain_path

if TYPE_CHECKING:
    import onnxruntime as ort

DOMAIN = "st3fx"
"""The operators' domain."""

OPSET = 1
"""Its version."""

HINT = (
    "st3fx: call options.register_custom_ops_library(st3fx.runtime.library()) first, or open the "
    "file by st3fx.runtime.session(path)"
)
"""Another domain of theirs: what a session without the kernel library says is not there."""


def library() -> str:
    """The path of the kernel library, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        NativeError: There is none, or it cannot be loaded.
    """
    native.load()
    return str(native.library_path())


def session(
    path: str | Path,
    threads: int | None = None,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    options: ort.SessionOptions | None = None,
) -> ort.InferenceSession:
    """A session for an exported model, sparse operators included.

    Args:
        path: A ``.onnx`` file, with sparse operators or without.
        threads: How many threads one operator may use; ``None`` leaves the choice to ONNX Runtime.
        providers: ONNX Runtime's execution providers. The sparse operators run on the CPU.
        options: Further settings; the library and the threads are added to a given object, which
            may serve any number of sessions.

    Raises:
        NativeError: The file cannot be loaded: the kernel library is missing, or the file is
            damaged or does not mean what it says. The message names the plain file beside it, if
            there is one.
    """
    import onnxruntime as ort  # noqa: PLC0415 (takes a while; the command line must answer at once)

    try:
        open_model(Path(path), NativeError, weights=False, compared=True)
    except NativeError as error:
        raise NativeError(f"{error}{_way_out(path)}") from error
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised: nothing else is written of them
    if threads is not None:
        options.intra_op_num_threads = threads
    missing: NativeError | None = None
    try:
        options.register_custom_ops_library(library())
    except NativeError as error:  # plain files work without it
        missing = error
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # what ONNX Runtime raises has no common root
        if missing and DOMAIN in str(error):
            raise NativeError(
                f"{path} needs the sparse kernels: {missing}{_way_out(path)}"
            ) from error
        reason = str(error).strip().splitlines()[0]
        raise NativeError(f"{path} cannot be loaded: {reason}{_way_out(path)}") from error


def _way_out(path: str | Path) -> str:
    """Names the plain model that was written beside a sparse one."""
    plain = plain_path(Path(path))
    if not plain.exists():
        return ""
    return f"; {plain} is the same model in ONNX's own operators and runs everywhere"
