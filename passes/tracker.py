"""The dispatch-level tracker: follows parameters into convolutions and matrix products."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from st3fx.core.calls import CallSpec
from st3fx.core.inputs import Example
from st3fx.core.leaves import tensors_in
from st3fx.core.settled import Left
from st3fx.core.sites import Layout
from st3fx.passes.operators import (
    ATEN_LAYOUT,
    ATEN_MULTIPLY,
    PAIR_PRODUCTS,
    RECURRENT,
    VECTOR_PRODUCTS,
)
from st3fx.passes.written import Written


@dataclass(frozen=True)
class Multiplication:
    """One operator that multiplies with a parameter.

    Attributes:
        parameter: Full name.
        op: ``conv2d``, ``linear``, ``matmul``, ...
        module: Full name of the module whose own forward issued it.
        layout: Where the parameter's output channels lie.
        groups: Groups of a convolution.
        computed: Whether the multiplied tensor was computed from the parameter first.
    """

    parameter: str
    op: str
    module: str
    layout: Layout
    groups: int
    computed: bool


@dataclass
class Observation:
    """What a model does with its parameters when it runs.

    Attributes:
        multiplications: An ordered set, in the order of their execution.
        other_uses: Parameter -> operators that mix it with activations without multiplying.
        readers: Parameter -> modules whose own forward issued these.
        calls: Module -> the distinct ways in which it is called, each with its mode.
        macs: Parameter -> multiplications with all of its scalars in the call in train mode.
        left: Mode -> what the forward leaves in its modules' attributes.
        written: Parameters that it writes to, as some clamp a temperature.
    """

    multiplications: dict[Multiplication, None] = field(default_factory=dict)
    other_uses: dict[str, set[str]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    calls: dict[str, list[tuple[bool, CallSpec]]] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    left: dict[bool, list[Left]] = field(default_factory=lambda: {True: [], False: []})
    written: list[str] = field(default_factory=list)

    def multiplied(self) -> dict[str, list[Multiplication]]:
        """Multiplications by parameter, in the order of first use."""
        table: dict[str, list[Multiplication]] = {}
        for item in self.multiplications:
            table.setdefault(item.parameter, []).append(item)
        return table


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: the parameters that it is made of; none for an activation."""

    parameters: frozenset[str] = frozenset()
    computed: bool = False
    base: Tensor | None = None


_ACTIVATION = _Origin()


class Tracker(TorchDispatchMode):
    """Follows parameters and activations through one forward.

    Attributes:
        written: Parameters that the forward writes to.
    """

    def __init__(
        self, model: nn.Module, observation: Observation, module_stack: list[str], training: bool
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._training = training
        self._parameters = {
            id(parameter): _Origin(frozenset([name]), base=parameter)
            for name, parameter in model.named_parameters()
        }
        self._origins: dict[int, tuple[weakref.ref[Tensor], _Origin]] = {}
        self._observation = observation
        self._stack = module_stack
        self.written = Written(model)

    def mark_inputs(self, example: Example) -> None:
        """The example's tensors are activations."""
        for leaf in pytree.tree_leaves((example.args, example.kwargs)):
            if isinstance(leaf, Tensor):
                self._mark(leaf, _ACTIVATION)

    def _mark(self, tensor: Tensor, origin: _Origin) -> None:
        self._origins[id(tensor)] = (weakref.ref(tensor), origin)

    def _origin(self, tensor: Tensor) -> _Origin | None:
        found = self._parameters.get(id(tensor))
        if found is not None:
            return found
        entry = self._origins.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.written.note(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        tensors = tensors_in([*args, *(kwargs or {}).values()])
        origins = [origin for t in tensors if (origin := self._origin(t)) is not None]
        if origins:
            made = self._follow(func, args, origins, out)
            for leaf in tensors_in([out]):
                if id(leaf) not in self._parameters:
                    self._mark(leaf, self._rebase(made, leaf))
        return out

    @staticmethod
    def _rebase(origin: _Origin, tensor: Tensor) -> _Origin:
        if origin is not _ACTIVATION and origin.base is None:
            return _Origin(origin.parameters, origin.computed, tensor)
        return origin

    def _follow(
        self, func: Any, args: tuple[Any, ...], origins: list[_Origin], out: Any
    ) -> _Origin:
        name = func._schema.name
        makes_weight = name in VECTOR_PRODUCTS or "parametrizations" in self._stack[-1].split(".")
        on_weights_only = makes_weight and _ACTIVATION not in origins
        if name in ATEN_MULTIPLY and not on_weights_only:
            self._multiply(name, args, out)
            return _ACTIVATION
        if _ACTIVATION in origins:
            for parameter in frozenset[str]().union(*(o.parameters for o in origins)):
                self._read(parameter, name.removeprefix("aten::"))
            return _ACTIVATION
        layout_only = func.is_view or name in ATEN_LAYOUT
        if layout_only and len(origins) == 1:
            return origins[0]
        parameters = frozenset[str]().union(*(origin.parameters for origin in origins))
        return _Origin(parameters, computed=True)

    def _multiply(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        positions = ATEN_MULTIPLY[name]
        if name in PAIR_PRODUCTS and all(self._made_of(args[p]) for p in positions):
            # A learned input (a query, a latent) times a weight: only the right side is the weight.
            for parameter in self._made_of(args[positions[0]]):
                self._read(parameter, "the product with another weight, as its input")
        for position in positions:
            operand = args[position] if position < len(args) else None
            for tensor in pytree.tree_leaves(operand):
                origin = self._origin(tensor) if isinstance(tensor, Tensor) else None
                for parameter in sorted(origin.parameters) if origin is not None else ():
                    assert origin is not None
                    self._record(parameter, name, args, tensor, position, origin)
                    if self._training:
                        macs = count_macs(name, args, tensor, position, out)
                        known = self._observation.macs.get(parameter, 0)
                        self._observation.macs[parameter] = known + macs

    def _read(self, parameter: str, use: str) -> None:
        self._observation.other_uses.setdefault(parameter, set()).add(use)
        self._observation.readers.setdefault(parameter, set()).add(self._stack[-1])

    def _made_of(self, tensor: Tensor) -> frozenset[str]:
        origin = self._origin(tensor)
        return frozenset() if origin is None else origin.parameters

    def _record(
        self,
        parameter: str,
        name: str,
        args: tuple[Any, ...],
        tensor: Tensor,
        position: int,
        origin: _Origin,
    ) -> None:
        op, layout, groups = _describe(name, args, tensor, position, origin)
        computed = origin.computed or len(origin.parameters) > 1
        item = Multiplication(parameter, op, self._stack[-1], layout, groups, computed)
        self._observation.multiplications[item] = None


def count_macs(name: str, args: tuple[Any, ...], weight: Tensor, position: int, out: Any) -> int:
    """Multiplications of one operator with a weight, padding included.

    Each scalar multiplies once for every position: of a convolution's output (of its input if it is
    transposed), of a recurrent layer's sequence, of the rows that a matrix product transforms. What
    has no rule counts one for each.
    """
    result = next((leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)), weight)
    if name.endswith("convolution"):
        transposed = len(args) > 8 and bool(args[6])
        positions = (args[0] if transposed else result).numel() // weight.shape[0]
        return weight.numel() * positions
    if name in RECURRENT:
        sequence: Tensor = args[0]
        return weight.numel() * (sequence.numel() // sequence.shape[-1])
    if name not in PAIR_PRODUCTS or weight.dim() < 2:
        return weight.numel()
    on_the_right = position == ATEN_MULTIPLY[name][-1]
    summed = -2 if on_the_right and not name.endswith("linear") else -1
    return result.numel() * weight.shape[summed]


def _describe(
    name: str, args: tuple[Any, ...], tensor: Tensor, position: int, origin: _Origin
) -> tuple[str, Layout, int]:
    """Operator, output channels and groups of one multiplication."""
    if name.endswith("convolution"):
        transposed, groups = (bool(args[6]), int(args[8])) if len(args) > 8 else (False, 1)
        op = f"conv{'_transpose' if transposed else ''}{tensor.dim() - 2}d"
        return op, convolution_layout(op, groups), groups
    if name in RECURRENT:
        return "rnn", Layout((0,)), 1
    if name in ("aten::linear", "aten::mkldnn_linear"):
        return "linear", Layout((0,)), 1
    if name == "aten::_trilinear":
        return "bilinear", Layout((0,)), 1
    if name in ("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd"):
        return "linear", Layout((0,)), 1
    if "scaled_dot_product" in name or tensor.dim() < 2:
        return "matmul", Layout(()), 1
    right = position == ATEN_MULTIPLY[name][-1]
    columns = tensor.dim() - 1 if right else tensor.dim() - 2
    layout = Layout(_source_dims(tensor, origin.base, [*range(tensor.dim() - 2), columns]))
    return ("linear" if layout.channel_dims == (0,) and right else "matmul"), layout, 1


def convolution_layout(op: str, groups: int) -> Layout:
    """Output channels of a convolution weight; a transposed one has them in dimension 1."""
    if not op.startswith("conv_transpose"):
        return Layout((0,))
    return Layout((0, 2), groups) if groups > 1 else Layout((1,))


def _source_dims(view: Tensor, base: Tensor | None, dims: list[int]) -> tuple[int, ...]:
    """The dimensions of ``base`` that dimensions of its view run along, found by their strides."""
    if base is None:
        return ()
    if base.untyped_storage()._cdata != view.untyped_storage()._cdata:
        return tuple(dims) if base.shape == view.shape else ()
    strides = {view.stride(d) for d in dims if view.size(d) > 1 and view.stride(d) > 0}
    return tuple(d for d in range(base.dim()) if base.size(d) > 1 and base.stride(d) in strides)
