"""What a graph would lose (contexts, work on real tensors), and what stopped a trace."""

from __future__ import annotations

import contextlib
import sys
import traceback
import types
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from st3fx.core.leaves import tensors_in
from st3fx.errors import TraceError
from st3fx.passes.contained import other_function_modes

_TORCH = str(Path(torch.__file__).parent)
_TRACERS = (str(Path(_TORCH) / "fx"), str(Path(__file__).parent))


def is_ours(file: str) -> bool:
    """Whether a file is torch's or ours, and not the model's code."""
    return file.startswith((_TORCH, _TRACERS[1], _CORE))


_CORE = str(Path(__file__).parents[1] / "core")
_BEGIN = str(Path(__file__).parent / "trace.py")
_LAYERS = str(Path("torch") / "nn")
_STDLIB = str(Path(contextlib.__file__).parent / "contextlib.py")


class RefuseRealTensors(TorchDispatchMode):
    """While tracing, proxies stand for tensors; work on real ones would freeze into the graph."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if tensors_in([*args, *(kwargs or {}).values()]):
            raise TraceError(f"computes {func} on a tensor of the module or a constant")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise TraceError("draws random numbers that do not depend on its inputs")
        return func(*args, **(kwargs or {}))


def ambient_state() -> tuple[Any, ...]:
    """Everything outside a graph that changes what its operators do."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
        ),
        other_function_modes(),
        torch._C._autograd._top_saved_tensors_default_hooks(True) is not None,
    )


def reason_of(error: BaseException) -> str:
    """What stopped a trace, in one line with the place in the model's code."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if " at " in message and ".py:" in message:
        return message  # passed on from a submodule
    place = _place_of(error)
    return f"{message} at {Path(place.filename).name}:{place.lineno}" if place else message


def place() -> str:
    """File and line of the model's code that is running; of torch's, where the model is torch's."""
    frame: types.FrameType | None = sys._getframe(1)
    layer = None
    while frame is not None and is_ours(frame.f_code.co_filename):
        if frame.f_code.co_filename == _BEGIN and frame.f_code.co_name == "run":
            frame = layer  # the trace begins here: there is no other code
            break
        if layer is None and _LAYERS in frame.f_code.co_filename:
            layer = frame
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""


def source_line(error: BaseException) -> str:
    """The line of the model's code that an error came from, with its place; empty if none did."""
    found, cause = None, error.__cause__
    while cause is not None:
        found, cause = _place_of(cause) or found, cause.__cause__
    return f"{Path(found.filename).name}:{found.lineno}: {found.line}" if found else ""


def _place_of(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame in the model's code, else in torch's layers."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_TRACERS, _CORE, _STDLIB))
    ]
    own = [frame for frame in frames if not frame.filename.startswith(_TORCH)]
    layers = [frame for frame in frames if not frame.filename.endswith("nn/modules/module.py")]
    places = own or layers
    return places[-1] if places else None
