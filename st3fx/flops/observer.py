"""The dispatch-level observer: notes every operator that works on activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from st3fx.flops import windows
from st3fx.flops.aten_call import AtenCall
from st3fx.flops.aten_rules import FREE
from st3fx.flops.constants import Constants
from st3fx.flops.operand import Window

_MOVES = frozenset(
    ("clone", "_to_copy", "contiguous", "_unsafe_view", "_reshape_alias", "reshape",
     "_reshape_copy")
)  # fmt: skip
"""Operators beside views that give the values of one tensor back."""

_KEEP_WINDOW = frozenset(("alias", "clone", "contiguous", "detach", "_to_copy"))

_PRODUCTS = frozenset(
    ("addmm", "baddbmm", "bmm", "convolution", "linear", "matmul", "mkldnn_rnn_layer", "mm",
     "_addmm_activation", "_cudnn_rnn")
)  # fmt: skip
"""What a layer does, with constants on both sides too: an initial state with its weight. Products
with vectors are not among them, as those compute a weight (spectral norm)."""


class NeedsValuesError(Exception):
    """Fakes do not do.

    Fake activations were written into a real tensor, which would keep its old values; or an
    operator's cost depends on the values: a mixture of experts, on who is routed where.
    """


_ROUTING = "offs"
"""The argument of a grouped product that says where each group's rows end."""


@dataclass(frozen=True)
class Step:
    """One operator of a forward.

    Attributes:
        operator: Its full name, ``aten::convolution``.
        module: Full name of the module whose forward issued it.
        call: Arguments and outputs.
    """

    operator: str
    module: str
    call: AtenCall


class Observer(TorchDispatchMode):
    """Runs operators on fake activations and real weights, and notes them as steps."""

    def __init__(self, model: nn.Module, stack: list[str], fake: FakeTensorMode | None) -> None:
        """Prepare to observe.

        Args:
            model: Whose parameters and buffers are the weights.
            stack: Names of the running modules, kept up to date by others.
            fake: Of the fake activations; ``None`` to run everything for real.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.constants = Constants(model)
        self.steps: list[Step] = []
        self._stack = stack
        self._fake = fake

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        active = any(self.constants.is_activation(tensor) for tensor in tensors)
        written = self._written(func, args) if active else []
        noted = active or self._multiplies_weight(func, tensors)
        # Before it runs: an operator in place would change what the operands say.
        named = self._named(func, args, kwargs) if noted else {}
        out = self._execute(func, args, kwargs, tensors, written)
        for tensor in written:
            self.constants.overwrite(tensor)
        results = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        if noted:
            self._note(func, named, args, results)
        else:
            layout = func.is_view or _name(func) in _MOVES
            for tensor in results:
                self.constants.derive(tensor, tensors, layout=layout)
        return out

    def _execute(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], written: list[Tensor]
    ) -> Any:
        if self._fake is None or not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if any(not isinstance(tensor, FakeTensor) for tensor in written):
            raise NeedsValuesError
        with self._fake:
            return func(*args, **kwargs)

    def _written(self, func: Any, args: tuple[Any, ...]) -> list[Tensor]:
        """Constants that an operator writes into."""
        return [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.is_write
            and isinstance(value, Tensor)
            and not self.constants.is_activation(value)
        ]

    def _multiplies_weight(self, func: Any, tensors: list[Tensor]) -> bool:
        return _name(func) in _PRODUCTS and any(map(self.constants.is_weight, tensors))

    def _note(
        self, func: Any, named: dict[str, Any], args: tuple[Any, ...], results: list[Tensor]
    ) -> None:
        name = _name(func)
        if not func.is_view and name not in FREE and results:
            outputs = tuple(map(self.constants.operand, results))
            call = AtenCall(name, named, outputs)
            self.steps.append(Step(func._schema.name, self._stack[-1], call))
        window = self._window(name, args)
        for tensor in results:
            self.constants.activate(tensor, window)

    def _window(self, name: str, args: tuple[Any, ...]) -> Window | None:
        """Where the result has real values, if it is padded."""
        if name in _KEEP_WINDOW or (name == "unsqueeze" and args[1] == 0):
            return self.constants.window(args[0])
        if name == "constant_pad_nd" and (len(args) < 3 or args[2] == 0):
            # Listed from the last dimension on, before and after in turn.
            before, after = args[1][::2][::-1], args[1][1::2][::-1]
            return windows.padded(self.constants.operand(args[0]), before, after)
        return None

    def _named(self, func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        """Arguments by their names in the schema, defaults too, tensors as operands."""
        named = {}
        for index, argument in enumerate(func._schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            value = args[index] if index < len(args) else kwargs.get(argument.name, default)
            if argument.name == _ROUTING and isinstance(value, Tensor):
                value = _ends(value)
            named[argument.name] = pytree.tree_map_only(Tensor, self.constants.operand, value)
        return named


def _ends(offsets: Tensor) -> tuple[int, ...]:
    if isinstance(offsets, FakeTensor):
        raise NeedsValuesError
    return tuple(offsets.tolist())


def _name(func: Any) -> str:
    """``relu`` for ``aten::relu_``; other namespaces stay."""
    name: str = func._schema.name
    return name.removeprefix("aten::").removesuffix("_")
