"""What a model's code sees while it is traced: functions that answer for proxies.

Each is put in place for one trace and taken away after it. While values are computed (``answers``
is false) they do what they always do. Packed sequences are nodes: how many rows they have depends
on the data of the lengths.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from st3fx.modules import rnn
from st3fx.modules.state import of_proxies, replaced


@contextlib.contextmanager
def packing(tracer: Any) -> Iterator[None]:
    """Packing is a node inside, also where a model's code has imported it by its name."""
    changes = _functions(tracer)
    names = {type(module).__module__ for module in tracer.root.modules()}
    files = [sys.modules[name] for name in names if name in sys.modules]
    own = {id(getattr(nn.utils.rnn, name)): value for name, value in changes.items()}
    with contextlib.ExitStack() as stack:
        for file in files:
            if not file.__name__.startswith("torch."):
                found = {key: own[id(f)] for key, f in vars(file).items() if id(f) in own}
                stack.enter_context(replaced(file, found))
        stack.enter_context(replaced(nn.utils.rnn, changes))
        yield


def _functions(tracer: Any) -> dict[str, Callable[..., Any]]:
    """Name in torch.nn.utils.rnn -> what takes its place."""
    torchs: Any = nn.utils.rnn
    pack, pad = (
        of_proxies(tracer, f) for f in (torchs.pack_padded_sequence, torchs.pad_packed_sequence)
    )
    fields = torchs._packed_sequence_init_args

    def packed(*args: Any, **kwargs: Any) -> Any:
        made = pack(*args, **kwargs)
        is_sorted = kwargs.get("enforce_sorted", args[3] if len(args) > 3 else True)
        return torchs.PackedSequence(made[0], made[1], *([] if is_sorted else [made[2], made[3]]))

    def padded(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        made = pad(*args, **kwargs)
        return made[0], made[1]

    def unchecked(data: Any, sizes: Any, order: Any = None, back: Any = None) -> tuple[Any, ...]:
        """The class's constructor asks where the sizes lie."""
        if not issubclass(type(data), fx.Proxy):
            return tuple(fields(data, sizes, order, back))
        return data, sizes, order, torchs.invert_permutation(order) if back is None else back

    return {
        "pack_padded_sequence": packed,
        "pad_packed_sequence": padded,
        "_packed_sequence_init_args": unchecked,
    }


_KNOW_PROXIES = re.compile(r"(torch|st3fx)(?!\.nn\.modules)(\.|$)")
"""Modules that tell proxies from tensors themselves; torch's layers are code like the user's."""

FACTORIES = (
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices",
    "triu_indices", "zeros", "hann_window", "hamming_window", "bartlett_window", "blackman_window",
    "kaiser_window",
)  # fmt: skip
"""Functions that make a tensor of numbers: a node, not a constant."""

_OF_DTYPES = ("finfo", "iinfo")

ENVIRONMENT = (
    "is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "get_autocast_dtype",
    "get_default_dtype", "get_autocast_gpu_dtype", "is_autocast_cpu_enabled",
)  # fmt: skip
"""What code may ask of its surroundings."""


@contextlib.contextmanager
def patched(tracer: Any) -> Iterator[None]:
    """All of them, for one trace.

    Args:
        tracer: An ``IslandTracer``.
    """
    functions = {name: _factory(tracer, getattr(torch, name)) for name in FACTORIES}
    functions |= {name: of_proxies(tracer, getattr(torch, name)) for name in _OF_DTYPES}
    functions |= _asking(tracer, torch, ENVIRONMENT)
    functions["is_tensor"] = _is_tensor(tracer)
    fast = _asking(tracer, torch.backends.mha, ("get_fastpath_enabled",))
    overrides = {"has_torch_function": _has_torch_function(torch.overrides.has_torch_function)}
    with (
        packing(tracer),
        replaced(torch, functions),
        replaced(torch.overrides, overrides),
        replaced(torch.backends.mha, fast),
        replaced(functional, {"_none_or_dtype": _none_or_dtype(functional._none_or_dtype)}),
        replaced(nn.Module, {"_named_members": _members(tracer), "get_parameter": _get(tracer)}),
        replaced(nn.RNNBase, rnn.quiet_update(lambda: tracer.questions.answers)),
        replaced(builtins, {"isinstance": _isinstance(tracer)}),
    ):
        yield


def _isinstance(tracer: Any) -> Callable[..., Any]:
    """Let code that asks for the type of a proxy hear what its value would answer.

    fx itself must go on telling proxies from tensors, so the answer depends on who asks.
    """
    ask = builtins.isinstance

    def answer(value: Any, kinds: Any) -> bool:
        if issubclass(type(value), fx.Proxy):
            asker = sys._getframe(1).f_globals.get("__name__", "")
            if not _KNOW_PROXIES.match(asker):
                kinds = kinds.__args__ if type(kinds) is types.UnionType else kinds
                return _is_kind(tracer.questions.class_of(value.node), kinds)
        return ask(value, kinds)

    return answer


def _is_kind(found: type, kinds: Any) -> bool:
    """``issubclass`` that leaves the special answers of torch's metaclasses alone."""
    if type(kinds) is tuple:
        return any(_is_kind(found, kind) for kind in kinds)
    return issubclass(found, kinds)


def _is_tensor(tracer: Any) -> Callable[[Any], bool]:
    original = torch.is_tensor

    def is_tensor(value: Any) -> bool:
        if issubclass(type(value), fx.Proxy):
            return issubclass(tracer.questions.class_of(value.node), Tensor)
        return original(value)

    return is_tensor


def _has_torch_function(original: Callable[..., bool]) -> Callable[..., bool]:
    """Layers that ask it choose a slower kernel for anything but plain tensors."""

    def has_torch_function(values: Any) -> bool:
        return original([value for value in values if not issubclass(type(value), fx.Proxy)])

    return has_torch_function


def _none_or_dtype(original: Callable[..., Any]) -> Callable[..., Any]:
    """Attention asks the dtype of its masks, and insists on tensors."""

    def none_or_dtype(mask: Any) -> Any:
        return mask.dtype if issubclass(type(mask), fx.Proxy) else original(mask)

    return none_or_dtype


def _factory(tracer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def make(*args: Any, **kwargs: Any) -> Any:
        if not tracer.questions.answers:
            return original(*args, **kwargs)
        return tracer.create_proxy("call_function", original, args, kwargs)

    return make


def _asking(tracer: Any, owner: Any, names: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """Functions that tell the surroundings of a call; what they say becomes a guard."""

    def watching(name: str) -> Callable[..., Any]:
        original = getattr(owner, name)

        @functools.wraps(original)
        def answer(*args: Any) -> Any:
            found = original(*args)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            is_told = tracer.regions.decides(name, args)
            if tracer.questions.answers and not is_told and not _KNOW_PROXIES.match(caller):
                tracer.questions.environment(owner, name, args, found)
            return found

        return answer

    return {name: watching(name) for name in names if hasattr(owner, name)}


def _members(tracer: Any) -> Callable[..., Any]:
    """``parameters()`` and ``buffers()`` give proxies, so that their dtype and device are asked."""
    original = nn.Module._named_members

    def named_members(module: nn.Module, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, tensor in original(module, *args, **kwargs):
            proxy = tracer.named_proxy(tensor, handed=True) if tracer.questions.answers else None
            yield name, tensor if proxy is None else proxy

    return named_members


def _get(tracer: Any) -> Callable[..., Any]:
    """``get_parameter`` means the parameter itself, as ``parameters()`` does."""
    original = nn.Module.get_parameter

    def get_parameter(module: nn.Module, target: str) -> Any:
        if not tracer.questions.answers:
            return original(module, target)
        with tracer.questions.silent():
            found = original(module, target)
        return tracer.named_proxy(found, handed=True)

    return get_parameter
