"""Leave no trace: random generators, buffers and attributes as they were before a trial run.

Put another function in a function's place, for the time of a trace.

What a forward leaves in attributes of its modules: the state in which its next call begins.

Detectors keep the anchors of the last input size, window attention the window that fits. A first
call computes and stores them; every further one finds them there. So graphs are captured and
verified as of the second call; the first one runs the module's own forward.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from st3fx.modules.hooks import records_outputs
from st3fx.modules.same import frozen, is_value
from st3fx.plan.names import is_below
from st3fx.tensors import Saved


class Attributes:
    """The attributes of all modules below ``root``, to compare with and to go back to.

    Containers are copied one level deep: a list that a forward appends to counts as changed.
    """

    def __init__(self, root: nn.Module) -> None:
        """Record the attributes of ``root`` and all modules in it."""
        self._saved = {name: _Saved(module) for name, module in root.named_modules()}

    def changes(self, below: str = "") -> list[str]:
        """Full names of attributes that were set, removed or changed since, below a module."""
        return [
            f"{name}.{key}" if name else key
            for name, saved in self._saved.items()
            if is_below(name, below)
            for key in saved.changes()
        ]

    def changed(self, name: str) -> bool:
        """Whether an attribute of one module was set, removed or changed since."""
        return bool(self._saved[name].changes())

    def restore(self, below: str = "") -> None:
        """Set everything below a module back to what was recorded."""
        for name, saved in self._saved.items():
            if is_below(name, below):
                saved.restore()


class _Saved:
    """The attributes of one module; of most modules, nearly all are containers with nothing in."""

    def __init__(self, module: nn.Module) -> None:
        self._now = module.__dict__
        self._objects = dict(module.__dict__)
        containers = [(k, v) for k, v in self._objects.items() if isinstance(v, _CONTAINERS)]
        self._contents = {key: value.copy() for key, value in containers if value}
        self._empty = [key for key, value in containers if not value]

    def changes(self) -> list[str]:
        now, before = self._now, self._objects
        changed = [key for key in before if now.get(key, _MISSING) is not before[key]]
        changed += [key for key in self._contents if not self._has_content(key)]
        changed += [key for key in self._empty if before[key]]
        changed += [key for key in now if key not in before]
        return list(dict.fromkeys(changed))

    def _has_content(self, key: str) -> bool:
        return _same_content(self._objects[key], self._contents[key])

    def restore(self) -> None:
        for key in [key for key in self._now if key not in self._objects]:
            del self._now[key]
        for key, content in self._contents.items():
            if not self._has_content(key):  # a frozen dict refuses to be set back
                _refill(self._objects[key], content)
        for key in self._empty:
            if self._objects[key]:
                self._objects[key].clear()
        self._now.update(self._objects)


_MISSING = object()
_CONTAINERS = (dict, list, set)


def _same_content(value: Any, before: Any) -> bool:
    if isinstance(value, dict):
        return list(value) == list(before) and all(value[k] is before[k] for k in value)
    if isinstance(value, list):
        return len(value) == len(before) and all(a is b for a, b in zip(value, before, strict=True))
    return bool(value == before)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def loose_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors in plain attributes of modules, and in lists and dicts there."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        for key, value in module.__dict__.items():
            if key in INTERNAL or not isinstance(value, Tensor | dict | list | tuple):
                continue
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter):
                    found[id(leaf)] = leaf
    return list(found.values())


INTERNAL = frozenset(nn.Module().__dict__)
"""Attributes that every module has."""


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Set the generators of torch (all devices), random and NumPy back on leaving."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def rng_states() -> tuple[Any, ...]:
    """The CPU generators' states, comparable with ``==``."""
    return (
        random.getstate(),
        pickle.dumps(np.random.get_state()),
        torch.random.get_rng_state().numpy().tobytes(),
    )


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), random and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """CuDNN chooses the same deterministic kernels each time; set back on leaving.

    Other CUDA kernels with atomic additions (scatter, some poolings) stay as they are.
    """
    cudnn = torch.backends.cudnn
    saved = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = saved


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One CPU thread: several add up the gradient of an indexed parameter in any order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Normal tensors inside: in ``inference_mode`` operators stay whole, and nothing is trained."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False):
        yield


@contextlib.contextmanager
def not_collecting() -> Iterator[None]:
    """No garbage collection inside."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def to_eval(model: nn.Module) -> nn.Module:
    """Put a model into eval mode, and give it back.

    What ``torch.export`` captured stays in the mode that it had then, and refuses to be asked.
    """
    with contextlib.suppress(NotImplementedError):
        model.eval()
    return model


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Set buffers, attributes (``training`` too) and random generators back on leaving.

    Tensors that lie in attributes are set back like buffers, sizes and memory too, unless they are
    activations or tensors of ``inference_mode``, which nothing outside of it can write to.
    """
    attributes = Attributes(model)
    tensors = [t for t in loose_tensors(model) if t.grad_fn is None and not t.is_inference()]
    buffers = [Saved(buffer) for buffer in (*model.buffers(), *tensors)]
    with preserved_rng():
        try:
            yield
        finally:
            attributes.restore()
            for buffer in buffers:
                buffer.restore()


class LeftBehind(NamedTuple):
    """An attribute that a forward has set; ``holder`` is the dict of the module that it lies in."""

    holder: dict[str, Any]
    name: str
    value: Any


@contextlib.contextmanager
def noted(model: nn.Module) -> Iterator[list[LeftBehind]]:
    """Note what is set inside: numbers, words, tensors without history, lists of these.

    Hooks that record outputs are noted too; activations with a history are not: every call makes
    its own. Nothing at all is noted where something else has changed (another hook, a module, an
    object): a part of a state is none.
    """
    attributes = Attributes(model)
    before = {
        module: {key: dict(module.__dict__[key]) for key in _ENTERED} for module in model.modules()
    }
    left: list[LeftBehind] = []
    yield left
    modules = dict(model.named_modules(remove_duplicate=False))  # a ScriptModule refuses paths
    for name in attributes.changes():
        path, _, key = name.rpartition(".")
        module = modules[path]
        holder, keys = module.__dict__, [key]
        if key in _ENTERED:
            holder, entries = module.__dict__[key], before[module][key]
            keys = [k for k in {**entries, **holder} if holder.get(k) is not entries.get(k)]
        for changed in keys:
            leaves = pytree.tree_leaves(holder.get(changed, _MISSING))
            if changed in INTERNAL or not all(map(_is_plain, leaves)):
                left.clear()
                return
            if all(map(_has_no_history, leaves)):
                left.append(LeftBehind(holder, changed, frozen(holder[changed])))


_ENTERED = ("_buffers", "_forward_hooks")
"""Dicts of a module of which single entries are looked at."""


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) or value is None or is_value(value) or records_outputs(value)


def _has_no_history(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.grad_fn is None and not isinstance(value, nn.Parameter)
    return True


@contextlib.contextmanager
def settled(left: Sequence[LeftBehind]) -> Iterator[None]:
    """Attributes as they were left, inside."""
    saved = [(holder, name, holder.get(name, _MISSING)) for holder, name, _ in left]
    for holder, name, value in left:
        holder[name] = _again(value)
    try:
        yield
    finally:
        for holder, name, value in saved:
            if value is _MISSING:
                holder.pop(name, None)
            else:
                holder[name] = value


def _again(value: Any) -> Any:
    """A copy, so that what runs may write to it."""
    return frozen(value, torch.clone)


@contextlib.contextmanager
def replaced(owner: Any, changes: dict[str, Any]) -> Iterator[None]:
    """Other attributes of an object inside."""
    saved = {name: owner.__dict__.get(name, replaced) for name in changes}
    for name, value in changes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is replaced:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def of_proxies(tracer: Any, original: Any) -> Callable[..., Any]:
    """A function that becomes a node where it is given a proxy."""

    def make(*args: Any, **kwargs: Any) -> Any:
        given = pytree.tree_leaves((args, kwargs))
        if not any(issubclass(type(leaf), fx.Proxy) for leaf in given):
            return original(*args, **kwargs)
        return tracer.create_proxy("call_function", original, args, kwargs)

    return make
