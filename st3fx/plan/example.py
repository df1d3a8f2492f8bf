"""Examples: calls of the model as in training, and the same call with one more sample."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from st3fx.errors import InputError
from st3fx.tensors import is_dense


class Call:
    """One of several example calls: arguments by position and by name, of any public method.

    ``st3fx.convert(model, [st3fx.Call(tokens, task="tag"), st3fx.Call(image, method="encode")])``
    """

    def __init__(self, /, *args: Any, method: str = "forward", **kwargs: Any) -> None:
        """Keep the arguments as they are.

        Args:
            args: Positional arguments.
            method: What is called: a method of the model, or of a part of it (``head.project``).
            kwargs: Keyword arguments; one that is named ``method`` goes into a dict as example.
        """
        self.args = args
        self.method = method
        self.kwargs = kwargs

    def __repr__(self) -> str:
        """The method, and the types of the arguments."""
        named = [f"{key}: {type(value).__name__}" for key, value in self.kwargs.items()]
        words = [*(type(value).__name__ for value in self.args), *named]
        return f"Call({self.method}({', '.join(words)}))"


@dataclass(frozen=True)
class Example:
    """One call of the model, as in training.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        method: Name of the method that is called.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    method: str = "forward"

    @classmethod
    def of(
        cls, inputs: Any, kwargs: Mapping[str, Any] | None = None, model: nn.Module | None = None
    ) -> Example:
        """From a tensor, a tuple of positional arguments, or a dict of keyword arguments.

        A list is one argument. So are a ``PackedSequence``, and a dict or named tuple that the
        forward of ``model`` takes as one argument and not as several.

        Raises:
            InputError: For anything else, and for a call of another method.
        """
        if isinstance(inputs, Call) and inputs.method == "forward":
            return cls(inputs.args, {**inputs.kwargs, **(kwargs or {})})
        if isinstance(inputs, Call) or _are_calls(inputs):
            raise InputError(
                "example_inputs has several calls, or a call of another method than forward: only "
                "convert takes these; give one call of the model"
            )
        return cls._of_one(inputs, dict(kwargs or {}), model)

    @classmethod
    def _of_one(cls, inputs: Any, named: dict[str, Any], model: nn.Module | None) -> Example:
        if isinstance(inputs, PackedSequence):
            return cls((inputs,), named)
        if isinstance(inputs, Mapping):
            if _is_one_argument(model, inputs, named, (), inputs):
                return cls((inputs,), named)
            return cls((), {**inputs, **named})
        if isinstance(inputs, tuple):
            if hasattr(inputs, "_fields") and _is_one_argument(model, inputs, named, inputs, {}):
                return cls((inputs,), named)
            return cls(tuple(inputs), named)
        if isinstance(inputs, Tensor | list):
            return cls((inputs,), named)
        raise InputError(
            f"example_inputs is a {type(inputs).__name__}: give a tensor, a tuple of positional "
            "arguments, or a dict of keyword arguments; an object that is the only argument goes "
            "into a tuple, as (batch,)"
        )

    def of_model(self, model: nn.Module) -> Callable[..., Any]:
        """What is called: the model, or a method of it.

        Raises:
            InputError: If there is no such method.
        """
        if self.method == "forward":
            return model
        try:
            found: Any = operator.attrgetter(self.method)(model)
        except AttributeError as error:
            raise InputError(f"{type(model).__name__} has no method {self.method!r}") from error
        if not callable(found):
            raise InputError(f"{self.method!r} of {type(model).__name__} cannot be called")
        return found  # type: ignore[no-any-return]

    def run(self, model: nn.Module) -> Any:
        """Make the call; its output, of a generator a list of all that it gives.

        Raises:
            InputError: If it is a coroutine, whose body no call runs.
        """
        output = self.of_model(model)(*self.args, **self.kwargs)
        if isinstance(output, types.GeneratorType):
            return list(output)
        if isinstance(output, types.CoroutineType | types.AsyncGeneratorType):
            if isinstance(output, types.CoroutineType):
                output.close()
            raise InputError(
                f"{self.method} of {type(model).__name__} is asynchronous, and its call runs "
                "nothing: give a method that returns a value"
            )
        return output

    def on_meta(self) -> Example:
        """The same call with tensors that have no values."""
        return self.changed(_to_meta)

    def normal(self) -> Example:
        """The same call without tensors of ``inference_mode``, which no gradient passes."""
        return self.changed(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Example:
        """The same call with something else in the place of each tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, self.kwargs))
        return dataclasses.replace(self, args=args, kwargs=kwargs)

    def larger_batch(self) -> Example | None:
        """The same call with one more sample, or ``None`` where no common batch is seen."""
        leaves, spec = pytree.tree_flatten(
            (self.args, self.kwargs), is_leaf=lambda leaf: isinstance(leaf, PackedSequence)
        )
        batch = batch_in(filter(_has_rows, leaves))
        if batch is None or any(isinstance(leaf, PackedSequence) for leaf in leaves):
            return None
        grown = {  # one that is given twice stays one
            id(leaf): torch.cat([leaf, leaf[:1]])
            if _has_rows(leaf) and leaf.shape[0] == batch > 0
            else leaf
            for leaf in leaves
        }
        args, kwargs = pytree.tree_unflatten([grown[id(leaf)] for leaf in leaves], spec)
        return dataclasses.replace(self, args=args, kwargs=kwargs)


def batch_in(tensors: Iterable[Tensor]) -> int | None:
    """How many samples a call has: the most common size of dimension 0; ``None`` if none has it."""
    sizes = collections.Counter(tensor.shape[0] for tensor in tensors if tensor.dim())
    return sizes.most_common(1)[0][0] if sizes else None


def examples_of(
    inputs: Any, kwargs: Mapping[str, Any] | None, model: nn.Module
) -> tuple[Example, ...]:
    """One example, or several: a list in which at least one item is a :class:`Call`.

    Raises:
        InputError: As :meth:`Example.of`, and for ``kwargs`` beside several calls.
    """
    if not _are_calls(inputs):
        inputs = [inputs]
    elif kwargs:
        raise InputError("example_kwargs beside several calls: give them in each Call")
    found = []
    for given in inputs:
        if isinstance(given, Call):
            example = Example(given.args, {**given.kwargs, **(kwargs or {})}, given.method)
            example.of_model(model)  # is there such a method?
        else:
            example = Example.of(given, kwargs, model)
        found.append(example.normal())
    return tuple(found)


def _are_calls(inputs: Any) -> bool:
    return isinstance(inputs, list) and any(isinstance(given, Call) for given in inputs)


def _is_one_argument(
    model: nn.Module | None,
    inputs: Any,
    named: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[Any, Any],
) -> bool:
    """Whether a forward takes ``inputs`` as its only positional argument, and not as several.

    Args:
        model: The model; without one nothing is known.
        inputs: A container.
        named: Keyword arguments beside it.
        args: Its contents as positional arguments.
        kwargs: Its contents as keyword arguments.
    """
    if not all(isinstance(key, str) for key in kwargs):
        return True
    if model is None:
        return False
    several = _takes(model, args, {**kwargs, **named})
    return not several and _takes(model, (inputs,), named)


def _takes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and is_dense(leaf) and leaf.dim() > 0


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
