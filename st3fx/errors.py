"""Every error that st3fx raises for a user's mistake: one root, one child per stage.

A message is one line: what is wrong, where (pass, full parameter name, shape), what to do.

Small parts of error messages: one line each, and never an endless list.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


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


def suggest(name: str, options: Sequence[str]) -> str:
    """``; did you mean a, b?`` with the options that look like ``name``, or nothing."""
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""
