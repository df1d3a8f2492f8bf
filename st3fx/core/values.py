"""What a graph's nodes hold in a call: sizes, flags and lengths, on tensors that have no memory.

A tensor is a ``FakeTensor``: it answers for its shape, dtype and device, and operators on it
compute shapes alone. Nothing of the model is touched: modules run as private copies on fake
tensors, and only operators known to have no side effects run at all.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from st3fx.core.portable import map_leaves
from st3fx.core.state import preserved_rng

_PURE = ("torch", "torchvision", "timm", "st3fx", "_operator", "operator", "builtins", "math")
"""Packages whose functions may be run to see what they give."""

_OF_MEMORY = frozenset(
    {
        "stride", "is_contiguous", "storage_offset", "data_ptr", "untyped_storage", "storage",
        "_version", "requires_grad", "is_leaf", "grad", "grad_fn", "retains_grad", "is_pinned",
        "is_shared", "is_inference", "layout",
    }
)  # fmt: skip
"""What a tensor without memory cannot answer for the real one."""


class Meta(NamedTuple):
    """All of a tensor but its data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def meta_of(tensor: Tensor) -> Meta | None:
    """The metadata of a plain dense tensor; ``None`` for any other kind."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return None
    if tensor.is_quantized or tensor.is_nested:
        return None
    return Meta(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


class Unknown:
    """In place of a value that depends on data or cannot be had."""

    def __init__(self, reason: str) -> None:
        """Say why, in words."""
        self.reason = reason


class _UnknownInputError(Exception):
    """Carries an :class:`Unknown` from a node's inputs to the node."""


class DataError(Exception):
    """An answer depends on the data of a tensor."""


class Evaluation:
    """The values of a graph's nodes in one call."""

    def __init__(self, root: nn.Module, metas: Sequence[Meta | None]) -> None:
        """Prepare; :meth:`run` computes.

        Args:
            root: The graph's module; only read.
            metas: The call's tensors, in the order of the placeholders.
        """
        self.values: dict[fx.Node, Any] = {}
        self._root = root
        self._metas = iter(metas)
        self._mode: FakeTensorMode | None = None  # takes seconds to import, the first time
        self._copies: dict[str, nn.Module] = {}
        self._stand_ins: dict[Meta, Tensor] = {}
        self._data: dict[fx.Node, Any] = {}

    def run(self, nodes: Iterable[fx.Node]) -> None:
        """Compute the values of further nodes, in their order."""
        if self._mode is None:
            self._mode = FakeTensorMode()
        with _disable_current_modes(), self._mode:
            for node in nodes:
                self.values[node] = self._value(node)

    def answer(self, node: fx.Node, question: str) -> Any:
        """The answer to one of :data:`QUESTIONS`.

        A tensor that is made of sizes and constants alone (positions, a causal mask) has known
        data: it is computed.

        Raises:
            DataError: If it depends on the data of an input, a weight or a random number.
        """
        value = self.values[node]
        with _disable_current_modes(), torch.no_grad():
            if isinstance(value, Unknown) or (isinstance(value, Tensor) and question in OF_DATA):
                value = self._known_data(node)
            return QUESTIONS[question](value)

    def _known_data(self, node: Any) -> Any:
        if not isinstance(node, fx.Node):
            return node
        value = self.values[node]
        leaves = pytree.tree_leaves(value)
        if not any(isinstance(leaf, (Tensor, Unknown)) for leaf in leaves):
            return value
        if node not in self._data:
            if sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)) > _MOST_DATA:
                raise DataError("depends on a large tensor")
            if not _is_repeatable(node):
                raise DataError("depends on the data of a tensor")
            args, kwargs = map_leaves([node.args, node.kwargs], self._known_data)
            if node.op == "call_method":
                self._data[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                self._data[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self._data[node]

    def _value(self, node: fx.Node) -> Any:
        try:
            args, kwargs = map_leaves([node.args, node.kwargs], self._known)
            return self._compute(node, args, kwargs)
        except _UnknownInputError as unknown:
            return unknown.args[0]
        except Exception as error:  # noqa: BLE001 - whatever an operator raises on such tensors
            return Unknown(type(error).__name__)

    def _known(self, leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        value = self.values[leaf]
        if isinstance(value, Unknown):
            raise _UnknownInputError(value)
        return value

    def _compute(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            meta = next(self._metas)
            return Unknown("is no plain tensor") if meta is None else _fake(meta)
        if node.op == "get_attr":
            return self._stand_in(_attribute(self._root, str(node.target)))
        if _asks_memory(node):
            return Unknown("depends on memory or gradients")
        if node.op == "call_module":
            return self._call(str(node.target), args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if not _is_pure(node.target):
            return Unknown(f"comes from {getattr(node.target, '__name__', 'a function')}")
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """For a parameter or buffer: one for all that differ in their data alone."""
        meta = meta_of(tensor)
        if meta is None:
            raise TypeError("is no plain tensor")
        if meta not in self._stand_ins:
            self._stand_ins[meta] = _fake(meta)
        return self._stand_ins[meta]

    def _call(self, name: str, args: Any, kwargs: Any) -> Any:
        """Call a private copy of a module, whose own state stays what it is."""
        module = self._root.get_submodule(name)
        plain = all(type(inner).__module__.startswith("torch.nn.") for inner in module.modules())
        if name not in self._copies:
            _require_own_forward(module)
            self._copies[name] = self._shallow(module) if plain else self._copy(module)
        with contextlib.nullcontext() if plain else preserved_rng():
            return self._copies[name](*args, **kwargs)

    def _shallow(self, module: nn.Module) -> nn.Module:
        """A copy of one of torch's layers, which keep no state but tensors and flags."""
        twin: nn.Module = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin.__dict__.pop("forward", None)
        for table in ("_parameters", "_buffers"):
            twin.__dict__[table] = {
                key: None if tensor is None else self._stand_in(tensor)
                for key, tensor in module.__dict__[table].items()
            }
        inner = {key: m and self._shallow(m) for key, m in module._modules.items()}
        twin.__dict__["_modules"] = inner
        if isinstance(module, nn.RNNBase):
            names = module._flat_weights_names
            twin.__dict__["_flat_weights"] = [twin._parameters[key] for key in names]
        return twin

    def _copy(self, module: nn.Module) -> nn.Module:
        """A copy of a user's module."""
        memo: dict[int, Any] = {}
        for inner in module.modules():
            for leaf in pytree.tree_leaves(list(inner.__dict__.values())):
                if isinstance(leaf, Tensor):
                    memo[id(leaf)] = self._stand_in(leaf)
            if "forward" in inner.__dict__:
                memo[id(inner.__dict__["forward"])] = None
        twin = copy.deepcopy(module, memo)
        for inner in twin.modules():
            inner.__dict__.pop("forward", None)
        return twin


def _fake(meta: Meta) -> Tensor:
    return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device=meta.device)


def _require_own_forward(module: nn.Module) -> None:
    """Refuse hooks, and forwards that others have put on a module; ours stand for its own.

    Raises:
        ValueError: With what was found.
    """
    for inner in module.modules():
        if has_hooks(inner):
            raise ValueError("has hooks")
        forward = inner.__dict__.get("forward")
        if forward is not None and getattr(forward, "replaced", forward) is not None:
            raise ValueError("has a forward of its own")


def has_hooks(module: nn.Module) -> bool:
    """Whether anything runs before or after the module's forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _attribute(root: nn.Module, target: str) -> Any:
    path, _, name = target.rpartition(".")
    return getattr(root.get_submodule(path), name)


def _asks_memory(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _OF_MEMORY
    return node.op == "call_function" and node.target is getattr and node.args[1] in _OF_MEMORY


def _is_pure(target: Any) -> bool:
    """Whether a function only computes: an operator, arithmetic, a plain class's constructor."""
    if isinstance(target, type) and (hasattr(target, "_fields") or is_record(target)):
        return True
    package = str(getattr(target, "__module__", None) or "torch").partition(".")[0]
    return package in _PURE


def _is_repeatable(node: fx.Node) -> bool:
    """Whether a node can be computed once more, by itself, to see its data."""
    if node.op not in ("call_function", "call_method") or _asks_memory(node):
        return False
    if node.op == "call_function" and not _is_pure(node.target):
        return False
    name = str(getattr(node.target, "__name__", node.target))
    if any(word in name for word in _RANDOM) or _writes(node) or "out" in node.kwargs:
        return False
    return not any(changes_in_place(user, node) for user in node.users)


_RANDOM = ("rand", "dropout", "normal", "bernoulli", "multinomial", "poisson")
"""In the names of functions that draw numbers."""


def _writes(node: fx.Node) -> bool:
    return bool(node.all_input_nodes) and changes_in_place(node, node.all_input_nodes[0])


def changes_in_place(node: fx.Node, value: fx.Node) -> bool:
    """Whether a node may change the shape or the items of a value that others hold."""
    if not node.args or node.args[0] is not value:
        return False
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name in _CONTAINER_CHANGES
    name = getattr(node.target, "__name__", "")
    return name in ("setitem", "delitem") or (name.endswith("_") and not name.endswith("__"))


_CONTAINER_CHANGES = frozenset({"append", "extend", "insert", "pop", "clear", "update"})


def is_record(kind: type) -> bool:
    """Whether a class is a dataclass."""
    return hasattr(kind, "__dataclass_fields__")


# --- questions that Python asks a value; the answers are plain data ---


def kind(value: Any) -> type:
    """The class that a model's code sees."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter
    return Tensor if isinstance(value, Tensor) else type(value)


def keys(value: Any) -> list[Any]:
    """The keys of a mapping."""
    return list(value)


def plain(value: Any) -> Any:
    """A number, a string and the like, as it is."""
    return value


OF_DATA = ("bool", "int", "float", "index")
"""Questions that a tensor answers by its data."""

_MOST_DATA = 1 << 22
"""Numbers in a tensor that is computed to answer a question."""

QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "bool": bool, "int": int, "float": float, "index": operator.index, "length": len,
    "kind": kind, "keys": keys, "plain": plain,
}  # fmt: skip
"""By name, as guards keep them."""
