"""What a trace must look after because no graph shows it: surroundings, containers, real tensors.

Gradients, autocast and modes change what operators do and stand in no graph. Tensors in lists and
dicts of a module (tables by device, anchors by level) are items of an attribute in a graph. Work on
real tensors would freeze into it and is refused. Submodules of some kinds stay calls. What stopped
a trace is told with the line of the model's code.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from st3fx.errors import St3fxError, TraceError
from st3fx.modules import rnn
from st3fx.modules.hooks import has_hooks, has_other_hooks, is_recording
from st3fx.modules.same import tensors_in
from st3fx.modules.state import INTERNAL
from st3fx.whose import TORCH, is_compilers, is_torchs

_INTERNAL = INTERNAL.union(rnn.LISTS)


def contained_tensors(root: nn.Module) -> dict[int, tuple[str, Any]]:
    """The tensors by their ids: full name of the attribute, and index or key in it."""
    found: dict[int, tuple[str, Any]] = {}
    for path, module in root.named_modules():
        for key, value in module.__dict__.items():
            if key in _INTERNAL or not isinstance(value, dict | list | tuple):
                continue
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            name = f"{path}.{key}" if path else key
            found |= {id(x): (name, index) for index, x in pairs if isinstance(x, Tensor)}
    return found


class ProxiesForTensors(TorchFunctionMode):
    """Hands proxies of tensors to torch's functions in place of the tensors."""

    def __init__(self, proxy_of: Callable[[Tensor], fx.Proxy | None]) -> None:
        """Prepare.

        Args:
            proxy_of: Gives a tensor's proxy, ``None`` for a tensor that stays as it is.
        """
        super().__init__()
        self._proxy_of = proxy_of

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function, or look up an attribute of a tensor."""
        swapped = False

        def proxied(tensor: Tensor) -> Any:
            nonlocal swapped
            proxy = self._proxy_of(tensor)
            swapped = swapped or proxy is not None
            return tensor if proxy is None else proxy

        new_args, new_kwargs = pytree.tree_map_only(Tensor, proxied, (args, kwargs or {}))
        if not swapped or not isinstance(new_args[0], fx.Proxy):
            return func(*new_args, **new_kwargs)
        if func.__name__ == "__get__":
            return getattr(new_args[0], func.__self__.__name__)
        if inspect.ismethoddescriptor(func):  # a method in C insists on a tensor
            return getattr(new_args[0], func.__name__)(*new_args[1:], **new_kwargs)
        return func(*new_args, **new_kwargs)


def other_function_modes() -> int:
    """Count the modes of others that would see a call of a torch function."""
    modes = torch.overrides._get_current_function_mode_stack()
    return sum(not isinstance(mode, ProxiesForTensors) for mode in modes)


_FX = str(Path(TORCH) / "fx")
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


def ambient_state() -> dict[str, Any]:
    """Everything outside a graph that changes what its operators do, by how to say that."""
    return {
        "with gradients switched in a torch.autograd.Function, or by no context": (
            torch.is_grad_enabled()
        ),
        "in inference mode": torch.is_inference_mode_enabled(),
        "under an autocast that is no context": [
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
        ],
        "under a tensor mode": other_function_modes(),
        "under activation checkpointing": (
            torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        ),
    }


def reason_of(error: BaseException) -> str:
    """What stopped a trace, in one line with the place in the model's code."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not isinstance(error, St3fxError | fx.proxy.TraceError):
        message = _in_words(error, message)
    elif " at " in message and ".py:" in message:
        return message  # passed on from a submodule
    place = _place_of(error)
    return f"{message} at {Path(place.filename).name}:{place.lineno}" if place else message


def _in_words(error: BaseException, message: str) -> str:
    """What a forward did that Python or torch refused, because proxies stood for its tensors."""
    held = re.fullmatch(r"argument of type: <class '(.+)'>", message)
    if held is not None:
        return f"computes with a {held[1]}, which no graph holds (a tensor or a number can be held)"
    if "Proxy" in message or "__array__" in message:
        return "gives a tensor to code that needs its values, as NumPy or a text does"
    return f"raises {type(error).__name__} ({message}) when run without the values of tensors"


def _is_models(file: str) -> bool:
    return not (is_torchs(file) or is_compilers(file))


def place() -> str:
    """File and line of the model's code that is running; of torch's, where the model is torch's."""
    frame: types.FrameType | None = sys._getframe(1)
    layer = None
    while frame is not None and not _is_models(frame.f_code.co_filename):
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
        if not frame.filename.startswith((_FX, _STDLIB)) and not is_compilers(frame.filename)
    ]
    own = [frame for frame in frames if not is_torchs(frame.filename)]
    layers = [frame for frame in frames if not frame.filename.endswith("nn/modules/module.py")]
    places = own or layers
    return places[-1] if places else None


OWN_KERNELS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
"""Layers that choose a fused kernel by what they are given and whether gradients are wanted: in the
graph of another module they stay calls, which choose each time."""


def reason_to_call(module: nn.Module) -> str | None:
    """Why a submodule with sites is not even tried."""
    if has_other_hooks(module):
        return "has hooks"
    if isinstance(module, OWN_KERNELS):
        return f"{type(module).__name__} chooses its kernel by what it is given"
    return None


def require_idle_recorders(name: str, called: nn.Module) -> None:
    """Refuse a call whose hooks would give the model above something: its graph is without hooks.

    Raises:
        TraceError: With the module.
    """
    if is_recording() and any(has_hooks(inner) for inner in called.modules()):
        raise TraceError(f"collects what {name} gives, which stays a call")
