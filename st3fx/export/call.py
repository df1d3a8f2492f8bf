"""A call of the model as ONNX knows it: named tensors in, named tensors out.

``Call`` takes an example apart and puts other tensors into its places; ``Flat`` is the model
as a function of these tensors, in which attention has the four dimensions that exporters know.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from st3fx.errors import ExportError
from st3fx.modules.state import to_eval
from st3fx.plan.example import Example


class FourDimensions(TorchFunctionMode):
    """Gives ``scaled_dot_product_attention`` a batch and heads, where it is called without.

    Its dimensions before the last two are all alike: those that are missing are of size 1, and
    those that are too many are one.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch's, attention otherwise."""
        given = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **given)
        return func(*args, **given)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **more: Any,
) -> Tensor:
    tensors = (query, key, value)
    if all(tensor.dim() == 4 for tensor in tensors) or more.get("enable_gqa"):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **more)
    lead = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in tensors))
    query, key, value = (_four(tensor, lead) for tensor in tensors)
    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = _four(attn_mask, lead)
    result = functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **more)
    return result.reshape(*lead, *result.shape[-2:])


def _four(tensor: Tensor, lead: Sequence[int]) -> Tensor:
    """A tensor with two dimensions before its last two."""
    whole = tensor.expand(*lead, *tensor.shape[-2:])
    if len(lead) < 2:
        return whole.reshape(*lead, *[1] * (2 - len(lead)), *tensor.shape[-2:])
    return whole.flatten(0, len(lead) - 2)


@dataclass(frozen=True)
class Call:
    """How tensors become arguments of one model.

    Attributes:
        names: Of the tensors, after the arguments of the model's forward.
        tensors: Those of the example.
        baked: Arguments that are no tensors, as ``name=value``: the file is made for these.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    baked: tuple[str, ...]
    _leaves: tuple[Any, ...]
    _spec: pytree.TreeSpec

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> Call:
        """Take an example apart.

        Raises:
            ExportError: When it holds no tensor.
        """
        leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
        names = list(_names(model, example))
        assert len(names) == len(leaves)
        tensors = [(n, leaf) for n, leaf in zip(names, leaves, strict=True) if _is_tensor(leaf)]
        if not tensors:
            raise ExportError("the example holds no tensor: an ONNX model would have no input")
        baked = tuple(
            f"{name}={leaf!r}"
            for name, leaf in zip(names, leaves, strict=True)
            if leaf is not None and not _is_tensor(leaf)
        )
        return cls(
            unique([name for name, _ in tensors]),
            tuple(tensor.detach().cpu() for _, tensor in tensors),
            baked,
            tuple(leaves),
            spec,
        )

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with ``tensors`` in the places of the example's."""
        rest = iter(tensors)
        leaves = [next(rest) if _is_tensor(leaf) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs


class Flat(nn.Module):
    """The model, in eval mode, as a function from tensors to a tuple of tensors.

    The exporter notes this class's name at the nodes of a file.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = to_eval(model)
        self.training = False
        self._call = call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the model; what is no tensor in its output is left out."""
        args, kwargs = self._call.arguments(tensors)
        with FourDimensions():
            result = self.model(*args, **kwargs)
        return tuple(tensor for _, tensor in outputs(result))


def outputs(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a model returns, named by keys, fields and positions.

    Args:
        value: A tensor, or mappings, sequences, named tuples and dataclasses of them.
        name: Of ``value`` itself.

    Raises:
        ExportError: For any other object, whose tensors cannot be seen.
    """
    if isinstance(value, Tensor):
        yield name or "output", value
        return
    parts = _parts(value, name)
    if parts is None:
        raise ExportError(
            f"the model returns a {type(value).__name__}{f' as {name}' if name else ''}: ONNX "
            "takes tensors, in tuples, lists, dicts or dataclasses"
        )
    for inner, item in parts:
        yield from outputs(item, inner)


def _parts(value: Any, name: str) -> list[tuple[str, Any]] | None:
    """What is in a container, with names; nothing for numbers; ``None`` for unknown objects."""
    if isinstance(value, Mapping):
        return [(_join(name, str(key)), item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(_join(name, field), getattr(value, field)) for field in value._fields]
    if isinstance(value, list | tuple):
        return [(f"{name or 'output'}_{index}", item) for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return [(_join(name, field.name), getattr(value, field.name)) for field in fields]
    plain = value is None or isinstance(value, int | float | str | torch.SymInt)
    return [] if plain else None


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """``names``, with a number behind those that were there before."""
    taken: dict[str, None] = {}
    for name in names:
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        taken[free] = None
    return tuple(taken)


def _names(model: nn.Module, example: Example) -> Iterator[str]:
    """One name for each leaf of the example, in the order of its pytree."""
    positional = _positional(model, len(example.args))
    for name, argument in zip(positional, example.args, strict=True):
        yield from _leaf_names(name, argument)
    for name, argument in example.kwargs.items():
        yield from _leaf_names(name, argument)


def _leaf_names(name: str, argument: Any) -> Iterator[str]:
    for path, _ in pytree.tree_leaves_with_path(argument):
        parts = (re.sub(r"\W+", "_", pytree.keystr((key,))).strip("_") for key in path)
        yield "_".join((name, *parts))


def _positional(model: nn.Module, count: int) -> list[str]:
    """Names of the first ``count`` arguments of the model's forward."""
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(count - len(names))]
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    # More than it takes: calling it will say so.
    names += [f"argument_{index}" for index in range(len(names), count)]
    return names[:count]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _join(name: str, key: str) -> str:
    return f"{name}_{key}" if name else key
