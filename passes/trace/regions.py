"""What traced code switches for a while: gradients and autocast become regions of the graph.

The code really enters its contexts, so that whatever it asks of its surroundings is answered
rightly; two nodes do the same when the graph runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

from st3fx.errors import TraceError
from st3fx.graphs import regions
from st3fx.passes.trace.ambient import ambient_state
from st3fx.passes.trace.questions import Questions

_OF_GRADIENTS: tuple[type[Any], ...] = (
    torch.no_grad,
    torch.enable_grad,
    torch.set_grad_enabled,
)


class _Open(NamedTuple):
    """A context that traced code is inside of.

    Attributes:
        context: Of torch's.
        node: What entered it.
        leave: Its own ``__exit__``.
    """

    context: Any
    node: fx.Proxy
    leave: Callable[..., Any]


class Regions:
    """The regions of one trace."""

    def __init__(self, questions: Questions, create: Callable[..., fx.Proxy]) -> None:
        """Outside of all.

        Args:
            questions: Values are computed under the context that their nodes run under.
            create: Makes a node.
        """
        self._questions, self._create = questions, create
        self._open: list[_Open] = []
        self._ambient = ambient_state()

    def require_known(self) -> None:
        """Refuse a context that is none of the graph's regions.

        Raises:
            TraceError: If operators run under another context than the graph's nodes would.
        """
        for words, value in ambient_state().items():
            if value != self._ambient[words]:
                raise TraceError(f"runs {words}")

    def is_known(self) -> bool:
        """Whether operators run under the context that the graph's nodes would."""
        return ambient_state() == self._ambient

    @property
    def current(self) -> fx.Node | None:
        """The node that entered the region; a parameter is read anew in each."""
        return self._open[-1].node.node if self._open else None

    def decides(self, question: str, args: tuple[Any, ...]) -> bool:
        """Whether a region, and not the call's surroundings, answers a question of torch's."""
        contexts = [entry.context for entry in self._open]
        if question == "is_grad_enabled":
            return any(isinstance(context, _OF_GRADIENTS) for context in contexts)
        if "is_autocast" not in question:
            return False
        device = args[0] if args else "cpu" if "cpu" in question else "cuda"
        return any(isinstance(c, torch.autocast) and c.device == device for c in contexts)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Contexts that are entered inside become regions."""
        autocast: Any = torch.autocast
        inference: Any = torch.inference_mode
        kinds = (autocast, *_OF_GRADIENTS)
        saved = [(kind, kind.__enter__, kind.__exit__) for kind in kinds]
        refused, make = inference.__enter__, autocast.__init__
        gradients = torch.is_grad_enabled()
        for kind, enter, leave in saved:
            kind.__enter__ = self._entering(enter, leave)
            kind.__exit__ = self._leaving(leave)
        inference.__enter__ = _refusing(self._questions, refused)
        autocast.__init__ = _by_name(make)
        try:
            yield
        finally:
            autocast.__init__ = make
            inference.__enter__ = refused
            for kind, enter, leave in saved:
                kind.__enter__, kind.__exit__ = enter, leave
            self.unwind(0)
            torch._C._set_grad_enabled(gradients)

    @property
    def depth(self) -> int:
        """Count the regions that the code is inside of."""
        return len(self._open)

    def unwind(self, depth: int) -> None:
        """Leave what code has left open that failed."""
        while len(self._open) > depth:
            last = self._open.pop()
            last.leave(last.context, None, None, None)
            self._ambient = ambient_state()

    def _entering(
        self, enter: Callable[[Any], Any], leave: Callable[..., Any]
    ) -> Callable[[Any], Any]:
        def entered(context: Any) -> Any:
            if not self._questions.answers:
                return enter(context)
            if isinstance(context, torch.set_grad_enabled):
                torch._C._set_grad_enabled(context.prev)  # it switches when it is made
            self._questions.catch_up()
            node = self._create("call_function", *_entry(context), {})
            found = enter(context)
            self._open.append(_Open(context, node, leave))
            self._ambient = ambient_state()
            return found

        return entered

    def _leaving(self, leave: Callable[..., Any]) -> Callable[..., Any]:
        def left(context: Any, *error: Any) -> Any:
            if not self._questions.answers:
                return leave(context, *error)
            try:
                self._close(context)
            finally:
                found = leave(context, *error)
                self._ambient = ambient_state()
            return found

        return left

    def _close(self, context: Any) -> None:
        if not self._open or self._open[-1].context is not context:
            self._open = [entry for entry in self._open if entry.context is not context]
            raise TraceError(f"leaves a {type(context).__name__} that it has not entered last")
        self._questions.catch_up()
        node = self._open.pop().node
        if isinstance(context, _OF_GRADIENTS):
            self._create("call_function", regions.leave_grad, (node,), {})
        else:
            self._create("call_function", regions.leave_autocast, (), {})


def _entry(context: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function that enters a context again, and its arguments."""
    if isinstance(context, torch.autocast):
        made_before = (context.device, context.fast_dtype, context._enabled, context._cache_enabled)
        return regions.enter_autocast, getattr(context, "_arguments", made_before)
    if isinstance(context, torch.set_grad_enabled):
        return regions.enter_grad, (context.mode,)
    return regions.enter_grad, (isinstance(context, torch.enable_grad),)


def _by_name(make: Callable[..., None]) -> Callable[..., None]:
    """``torch.autocast`` that takes a proxy for the device's name, and keeps its arguments."""

    def made(
        context: Any,
        device_type: Any,
        dtype: torch.dtype | None = None,
        enabled: Any = True,
        cache_enabled: bool | None = None,
    ) -> None:
        name = str(device_type) if issubclass(type(device_type), fx.Proxy) else device_type
        context._arguments = (name, dtype, bool(enabled), cache_enabled)
        make(context, *context._arguments)

    return made


def _refusing(questions: Questions, enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def refuse(context: Any) -> Any:
        if questions.answers:
            raise TraceError(f"enters {type(context).__name__}")
        return enter(context)

    return refuse
