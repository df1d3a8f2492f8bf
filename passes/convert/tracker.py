"""The dispatch-level tracker: follows parameters into convolutions and matrix products."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from st3fx.modules.same import tensors_in, tensors_inside
from st3fx.passes.convert.observation import Multiplication, Observation
from st3fx.passes.convert.origins import ACTIVATION, Event, Origin, Origins, Product
from st3fx.passes.convert.products import (
    ATEN_LAYOUT,
    ATEN_MULTIPLY,
    COMBINING,
    LOOKING_UP,
    PAIR_PRODUCTS,
    ROUNDING,
    SELECTING,
    VECTOR_PRODUCTS,
    WITHOUT_VALUES,
    Operation,
    Running,
    count_macs,
    describe,
    is_weight,
)
from st3fx.passes.trace import place
from st3fx.plan.example import Example
from st3fx.provenance import written_by
from st3fx.tensors import is_dense

AS_INPUT = "a product as its input"
"""The use of a parameter that another one, a weight, multiplies."""

FOREIGN = "NumPy"
"""Begins the name of a use in code outside of torch; the place in the model's code follows."""


class Tracker(TorchDispatchMode):
    """Follows parameters and activations through one forward.

    Attributes:
        written: Parameters that operators write to -> modules whose own forward issued these.
    """

    def __init__(self, model: nn.Module, running: Running, training: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._training = training
        self._origins = Origins(model)
        self._running = running
        self._events: list[Event] = []
        self._computing: dict[str, set[str]] = {}
        self._given: set[str] = set()
        self.written: dict[str, set[str]] = {}

    def mark_inputs(self, example: Example) -> None:
        """The example's tensors are activations."""
        for leaf in pytree.tree_leaves((example.args, example.kwargs)):
            if isinstance(leaf, Tensor):
                self._origins.mark(leaf, ACTIVATION)

    def mark_outputs(self, output: Any) -> None:
        """What was made of parameters alone reaches the caller as it is."""
        for leaf in pytree.tree_leaves(output):
            for tensor in [leaf] if isinstance(leaf, Tensor) else tensors_inside(leaf):
                self._given |= self._made_of(tensor)

    def move(self, name: str, parameter: Tensor) -> None:
        """A parameter has got other memory."""
        self._origins.place(name, parameter)

    def hand_out(self, tensor: Tensor) -> None:
        """Code outside of torch gets a tensor's memory, to read or to write."""
        parameters = sorted(self._origins.in_memory(tensor))
        use = f"{FOREIGN} at {place()}" if parameters else ""
        for parameter in parameters:
            self._events.append(Event(parameter, self._running.modules[-1], use))

    def report(self, observation: Observation) -> None:
        """Add what was seen."""
        for event in self._events:
            if event.void:
                continue
            if event.item is not None:
                observation.multiplications[event.item] = None
                if self._training:
                    known = observation.macs.get(event.parameter, 0)
                    observation.macs[event.parameter] = known + event.macs
            if event.use is not None:
                observation.other_uses.setdefault(event.parameter, set()).add(event.use)
                observation.readers.setdefault(event.parameter, set()).add(event.module)
        for parameter, modules in self._computing.items():
            observation.computing.setdefault(parameter, set()).update(modules)
        observation.given |= self._given
        observation.add_written(self.written)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        for tensor in written_by(func, args, given):
            for name in self._origins.in_memory(tensor):
                self.written.setdefault(name, set()).add(self._running.modules[-1])
        out = func(*args, **given)
        if func.__name__.partition(".")[0] in WITHOUT_VALUES:
            return out
        tensors = tensors_in([*args, *given.values()])
        origins = [found for t in tensors if (found := self._origins.of(t)) is not None]
        if origins:
            op = Operation.of(func, args, given, out, self._running)
            made = self._follow(op, func.is_view, origins)
            for leaf in tensors_in([out]):
                self._origins.mark(leaf, made)
        return out

    def _follow(self, op: Operation, is_view: bool, origins: list[Origin]) -> Origin:
        weights_only = ACTIVATION not in origins
        first = self._origins.of(op.tensors()[0])
        if op.name in LOOKING_UP and any(origin.parameters for origin in origins):
            self._read_beside_products(op, origins)
            return ACTIVATION
        if first is not None and first.parameters and op.name in ROUNDING:
            return _rebased(op, first)
        if first is not None and first.parameters and op.name in SELECTING and not first.products:
            return dataclasses.replace(first, selected=first.selected or not weights_only)
        if op.name in ATEN_MULTIPLY and not (weights_only and self._makes_weight(op)):
            return self._multiply(op, weights_only=weights_only)
        if not weights_only:
            self._read_beside_products(op, origins)
            return ACTIVATION
        if (is_view or op.name in ATEN_LAYOUT) and len(origins) == 1:
            return _rebased(op, origins[0])
        return self._compute(op, origins)

    def _makes_weight(self, op: Operation) -> bool:
        return op.name in VECTOR_PRODUCTS or "parametrizations" in op.module.split(".")

    # --- products ---

    def _multiply(self, op: Operation, *, weights_only: bool) -> Origin:
        events: list[Event] = []
        products: list[Product] = []
        parameters: set[str] = set()
        selected = self._selected_inputs(op)
        for position in ATEN_MULTIPLY[op.name]:
            for tensor in op.operand(position):
                origin = self._origins.of(tensor)
                if origin is None or not origin.parameters:
                    continue
                if position in selected:
                    self._events += [Event(name, op.module, "index") for name in origin.parameters]
                    continue
                parameters |= origin.parameters
                if not origin.products:
                    events += self._multiplications(op, tensor, position, origin)
                elif is_weight(op, position, tensor, origin):
                    for event in (e for product in origin.products for e in product.events):
                        event.void = True
                    self._events += self._multiplications(op, tensor, position, origin)
                else:
                    products += origin.products
        alone = weights_only and not selected and op.name in PAIR_PRODUCTS and self._alone(op)
        if alone:
            events += self._inputs(op)
        self._events += events
        if not alone:
            return ACTIVATION
        return Origin(
            frozenset(parameters), computed=True, products=(*products, Product(op.module, events))
        )

    def _selected_inputs(self, op: Operation) -> list[int]:
        """Sides of a product that are rows of a table, chosen by data, times a weight."""
        if op.name not in PAIR_PRODUCTS:
            return []
        sides = {
            position: [o for t in op.operand(position) if (o := self._origins.of(t)) is not None]
            for position in ATEN_MULTIPLY[op.name]
        }
        weights = [p for p, side in sides.items() if any(o.parameters for o in side)]
        rows = [p for p in weights if any(origin.selected for origin in sides[p])]
        return rows if len(weights) > len(rows) else []

    def _alone(self, op: Operation) -> bool:
        """Whether both sides of a product are made of parameters and buffers."""
        sides = [op.operand(position) for position in ATEN_MULTIPLY[op.name]]
        origins = [self._origins.of(tensor) for side in sides for tensor in side]
        return all(origin is not None and not origin.selected for origin in origins)

    def _inputs(self, op: Operation) -> list[Event]:
        """A learned input (a query, a latent) times a weight: only the right side is the weight."""
        left, right = (op.operand(position) for position in ATEN_MULTIPLY[op.name])
        origins = [self._origins.of(tensor) for tensor in left]
        if not any(self._made_of(tensor) for tensor in right):
            return []
        return [
            Event(parameter, op.module, AS_INPUT)
            for origin in origins
            if origin is not None and not origin.products
            for parameter in sorted(origin.parameters)
        ]

    def _multiplications(
        self, op: Operation, tensor: Tensor, position: int, origin: Origin
    ) -> list[Event]:
        word, layout, groups = describe(op, tensor, position, origin.base)
        computed = origin.computed or len(origin.parameters) > 1
        macs = count_macs(op, tensor, position)
        return [
            Event(
                name,
                op.module,
                item=Multiplication(name, word, op.module, layout, groups, computed),
                macs=macs,
            )
            for name in sorted(origin.parameters)
        ]

    # --- everything else ---

    def _read_beside_products(self, op: Operation, origins: Iterable[Origin]) -> None:
        """An operator mixes parameters with activations; products of them are such already."""
        for origin in origins:
            if not origin.products:
                for parameter in sorted(origin.parameters):
                    self._events.append(Event(parameter, op.module, op.word))

    def _compute(self, op: Operation, origins: list[Origin]) -> Origin:
        """An operator on parameters and buffers alone."""
        parameters = frozenset[str]().union(*(origin.parameters for origin in origins))
        read = (origin.parameters for origin in origins if not origin.products)
        for parameter in frozenset[str]().union(*read):
            self._computing.setdefault(parameter, set()).add(op.module)
        if not tensors_in([op.out]):
            self._given |= parameters  # a number, or the truth of a comparison
        products = tuple(dict.fromkeys(p for origin in origins for p in origin.products))
        if not products:
            selected = any(origin.selected for origin in origins)
            return Origin(parameters, computed=True, selected=selected)
        first = len(self._events)
        self._read_beside_products(op, origins)
        if op.name not in COMBINING:
            return ACTIVATION
        products[0].events.extend(self._events[first:])
        mixed = any(origin.mixed for origin in origins) or self._mixes(op)
        return Origin(parameters, True, None, products, mixed)

    def _mixes(self, op: Operation) -> bool:
        """Whether a product is combined with a parameter of its own shape."""
        shape = next((leaf.shape for leaf in tensors_in([op.out])), None)
        origins = [self._origins.of(t) for t in op.tensors() if t.dim() > 1 and t.shape == shape]
        return any(o is not None and o.parameters and not o.products for o in origins)

    def _made_of(self, tensor: Tensor) -> frozenset[str]:
        origin = self._origins.of(tensor)
        return frozenset() if origin is None else origin.parameters


def _rebased(op: Operation, origin: Origin) -> Origin:
    """The origin of a copy: of a whole parameter it has the dimensions, and its own strides."""
    given, made = op.tensors()[0], next(iter(tensors_in([op.out])), None)
    base = origin.base
    if base is None or made is None or not (is_dense(given) and is_dense(base)):
        return origin
    whole = given.shape == base.shape == made.shape and given.stride() == base.stride()
    return dataclasses.replace(origin, base=None) if whole else origin
