"""Every error that st3fx raises for a user's mistake: one root, one child per stage.

A message is one line: what is wrong, where (pass, full parameter name, shape), what to do.

Small parts of error messages: one line each, and never an endless list.

What the machine has run out of, whoever noticed it.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence


class St3fxError(Exception):
    """Root of all errors that a user can mend. The command line turns it into exit code 2."""


class SpecError(St3fxError):
    """The SPEC gives no ``nn.Module``, or its inputs or weights do not fit."""


class InputError(St3fxError):
    """The model refuses the example inputs."""


class TraceError(St3fxError):
    """A forward cannot be captured as one fx graph. The conversion goes on with its children."""


class PlanError(St3fxError):
    """No parameter can be sparsified, or a selection names nothing."""


class MethodError(St3fxError, ValueError):
    """A method or schedule was given a value outside its range."""


class ForwardError(St3fxError):
    """A converted module was called in a way that it cannot answer with effective weights."""


class VerificationError(St3fxError):
    """The converted model does not compute what the original computes."""


class FoldError(St3fxError):
    """A module cannot be folded: it was not converted, or its structure was changed since."""


class StateError(St3fxError):
    """A saved state does not belong to this model."""


class BundleError(St3fxError):
    """A bundle cannot be written or read."""


class TrustError(St3fxError):
    """Code that a bundle, a run or a recipe names would run, and the user has not trusted it."""


class DataError(St3fxError):
    """A data set, or the user's own loaders, are missing, damaged or do not fit the settings."""


class TrainError(St3fxError):
    """A training run cannot start or go on: its settings, its folder, or its loss."""


class CheckpointError(TrainError):
    """A checkpoint cannot be written or read, or is of another run."""


class ExportError(St3fxError):
    """A model cannot be written as ONNX or as a weight file, or what was written differs."""


class QuantizeError(St3fxError):
    """A model cannot be quantized: its calibration data, a layer that is named, or the outcome."""


class FlopsError(St3fxError):
    """A graph cannot be counted: no ONNX, operators of its own, or sizes that are free."""


class BenchError(St3fxError):
    """A benchmark cannot run: a file, its input sizes, a setting, or what the runtime refuses."""


class NativeError(St3fxError):
    """The compiled CPU kernels are missing, of another version, or not for this CPU."""


class ReportError(St3fxError):
    """A report cannot be made or written: no run, no bundle, or a file of another's."""


class InspectError(St3fxError):
    """A file or folder is nothing that can be looked into, or is damaged."""


class SweepError(St3fxError):
    """A model cannot be taken to other sparsities, or none is as it is asked for."""


class ResourceError(St3fxError):
    """The machine has run out of memory, disk, handles or threads, or refuses a file."""


class OutputError(St3fxError):
    """What a command prints cannot be written, e.g. to a file on a full disk."""


class HalfPrecisionWarning(UserWarning):
    """Weights are trained in half precision, which loses most of an optimizer's steps."""


class StrangeFileWarning(UserWarning):
    """A bundle's folder holds files that are none of a bundle's."""


class EmptyLayerWarning(UserWarning):
    """A layer has lost all of its weights, or a model's outputs no longer depend on its inputs."""


class DriftWarning(UserWarning):
    """A converted model's structure has changed since, and what that does to its sparsity."""


class TargetWarning(UserWarning):
    """A model is folded before its sparsity has reached its target."""


class TraceWarning(UserWarning):
    """A tracer of another tool has taken the effective weights of the moment into its graph."""


class OptimizerWarning(UserWarning):
    """An optimizer does not train the weights of the converted model."""


class GranularityWarning(UserWarning):
    """No weight of a model can be pruned in the groups that were asked for."""


class LogWarning(UserWarning):
    """The last line of a run's log is not whole."""


class HookWarning(UserWarning):
    """A hook, or another function on a module, means the given model in the copy made of it."""


def describe(error: BaseException, *, limit: int = 200) -> str:
    """``TypeError: what it said``: the type and the first line of the message, cut at ``limit``."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def few(items: Iterable[str], *, limit: int = 4) -> str:
    """``a, b, c, d and 12 more``; ``none`` if there are none."""
    names = list(items)
    shown = ", ".join(names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown or "none"


def quoted(path: object) -> str:
    """A path as a shell takes it, for commands that a message advises."""
    return shlex.quote(str(path))


def suggest(name: str, options: Sequence[str]) -> str:
    """``; did you mean a, b?`` with the options that look like ``name``, or nothing."""
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""


_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # what steers a terminal: C0, DEL, C1
    "\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # unseen, or turns
    "\u2028\u2029"  # ends lines
    "\ud800-\udfff\U000e0000-\U000e007f]"  # bytes that are no text; tags
)


def printable(text: str, *, lines: bool = False) -> str:
    r"""``text`` with what a reader cannot see as escapes: a name of ``\x1b[2J`` clears no screen.

    Args:
        text: Anything that may come from a file: names, reasons, messages.
        lines: Whether line ends and tabs are meant as such.
    """
    return _UNSEEN.sub(lambda found: _escape(found[0], lines=lines), text)


def _escape(char: str, *, lines: bool) -> str:
    if lines and char in "\n\t":
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


_NO_MEMORY = re.compile(
    "can't allocate memory|cannot allocate memory|bad.alloc|out of memory|failed to allocate"
    "|could not create a (memory|primitive)(?! desc)|could not execute a primitive",
    re.IGNORECASE,
)
"""As torch, ONNX Runtime, CUDA, oneDNN and the C library put it."""

_ASKED = re.compile(r"(?:tried to allocate|of size) (\d+)|Tried to allocate ([\d.]+) ([KMG])iB")

_NO_THREAD = re.compile("can't start new thread|resource temporarily unavailable", re.IGNORECASE)

_HANDLES = "too many open files: raise the limit, e.g. by ulimit -n 4096"

_NO_DISK = re.compile("no space left|disk quota|file write failed|file too large", re.IGNORECASE)


def exhausted(error: BaseException) -> str | None:
    """What the machine has run out of, or refuses, in words; ``None`` for any other error."""
    for each in chain(error):
        said = _of_system(each) if isinstance(each, OSError) else _of_library(each)
        if said is not None:
            return said
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _of_system(error: OSError) -> str | None:
    where = f"{error.filename}: " if isinstance(error.filename, str | os.PathLike) else ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{where}{_HANDLES}"
    if error.errno == errno.ENOMEM:
        return f"{where}not enough memory: {_LESS}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{where}{error.strerror}: make room, or write to another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        return f"{where}{error.strerror}"
    return None


def _of_library(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return f"not enough memory{_asked(text)}: {_LESS}"
    if _NO_THREAD.search(text):
        return (
            "no more threads can be started: raise the limit (ulimit -u), or set OMP_NUM_THREADS=1"
        )
    if "too many open files" in text.lower():
        return _HANDLES
    if _NO_DISK.search(text):
        return "no space left on the disk: make room, or write to another one"
    return None


_LESS = "close other programs, or take a smaller batch or model"


def _asked(text: str) -> str:
    """``, 4.1 GB more were asked for``, where a message says how much."""
    found = _ASKED.search(text)
    if found is None:
        return ""
    size = float(found[1] or found[2]) * {"K": 2**10, "M": 2**20, "G": 2**30, None: 1}[found[3]]
    return f", {size / 1e9:.3g} GB more were asked for" if size >= 1e7 else ""
