"""The observer notes every operator that works on activations while a forward runs.

It is a dispatch mode. Operators that call functions (``cond``, ``scan``, ``flex_attention``) it
runs as plain Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from st3fx.flops import products
from st3fx.flops.aten_rules import FREE, AtenCall
from st3fx.flops.constants import Constants
from st3fx.flops.einsum import contracts
from st3fx.flops.operand import Window
from st3fx.modules.same import tensors_in
from st3fx.provenance import MOVING, written_by


def kernel_of(func: HigherOrderOperator) -> Callable[..., Any] | None:
    """What an operator does, in Python; ``None`` where it does not say it."""
    own = _KERNELS.get(func.name())
    kernel: Callable[..., Any] | None = func.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
    return own or kernel


def _cond(pred: Any, when_true: Any, when_false: Any, operands: Any) -> Any:
    return (when_true if pred else when_false)(*operands)


def _scan(combine: Any, init: Any, xs: Any, additional_inputs: Any, **_: Any) -> Any:
    # Private, and all that there is: the operator's kernel is this call behind a check.
    from torch._higher_order_ops.scan import generic_scan  # noqa: PLC0415

    return generic_scan(combine, init, xs, additional_inputs=additional_inputs)


_KERNELS: Final[dict[str, Callable[..., Any]]] = {"cond": _cond, "scan": _scan}
"""What torch's own kernels do, which refuse to run while a mode observes."""


_KEEP_WINDOW = frozenset(("alias", "clone", "contiguous", "detach", "_to_copy"))

_PRODUCTS = frozenset(
    ("addmm", "baddbmm", "bmm", "convolution", "einsum", "linear", "matmul", "mkldnn_rnn_layer",
     "mm", "_addmm_activation", "_cudnn_rnn")
)  # fmt: skip
"""What a layer does, with constants on both sides too: an initial state with its weight. Products
with vectors are not among them, as those compute a weight (spectral norm)."""


_WEIGHTS = {"weight": 0, "mat2": 2}
"""Arguments of products that are weights where nothing of them depends on the input, however they
were made, and the number of dimensions that they must have for it: in a batch of matrices they may
as well be activations, as the keys of learned queries are."""


MATRICES = ("linear", "matmul", "__matmul__")
"""Functions whose second argument is a weight where it is a matrix that depends on no input."""


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

    supports_higher_order_operators = True

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
        self._hidden = 0  # how deep inside of operators that are noted as a whole

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._run_inside(func, args, kwargs)
        if _is_composite(func):
            # They come here whole under inference_mode, and of tensors that were made under it.
            if func is torch.ops.aten.einsum.default:
                path = kwargs.get("path") or ()
                equation, operands = args
                run = functools.partial(self._taken_apart, func, args, kwargs)
                return self.einsum(run, equation, operands, path)
            if _name(func) in MATRICES:
                self.fix_weight(args[1])
            return self._taken_apart(func, args, kwargs)
        return self._observe(func, args, kwargs)

    def fix_weight(self, tensor: Any) -> None:
        """Take a matrix from which a batch of equal ones may be made next as a weight."""
        if isinstance(tensor, Tensor) and tensor.dim() == 2:
            self.constants.fix(tensor)

    def _taken_apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        with self:
            return func.decompose(*args, **kwargs)

    def _run_inside(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """Run an operator that calls functions (``cond``, ``scan``) in Python, as it says itself.

        Raises:
            NeedsValuesError: When that depends on values.
        """
        if self._fake is not None:
            raise NeedsValuesError
        kernel = kernel_of(func)
        if kernel is not None:
            with self:
                return kernel(*args, **kwargs)
        out = func(*args, **kwargs)
        results = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        outputs = tuple(map(self.constants.operand, results))
        self.steps.append(Step(func.name(), self._stack[-1], AtenCall(func.name(), {}, outputs)))
        for tensor in results:
            self.constants.activate(tensor)
        return out

    def _observe(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run an operator, note it, and what its outputs are made of."""
        tensors = tensors_in([*args, *kwargs.values()])
        active = any(self.constants.is_activation(tensor) for tensor in tensors)
        given = written_by(func, args, kwargs)
        written = [tensor for tensor in given if not self.constants.is_activation(tensor)]
        noted = active or self._multiplies_weight(func, tensors)
        # Before it runs: an operator in place would change what the operands say.
        named = self._named(func, args, kwargs, tensors) if noted and not self._hidden else {}
        for tensor in () if active else written:
            self.constants.change(tensor)
        out = self._execute(func, args, kwargs, tensors, written if active else [])
        for tensor in written if active else ():
            self.constants.overwrite(tensor)
        results = tensors_in([out])
        if noted:
            self._note(func, named, args, results, tensors)
        else:
            layout = func.is_view or _name(func) in MOVING
            for tensor in results:
                self.constants.derive(tensor, tensors, layout=layout)
        return out

    def einsum(self, run: Callable[[], Tensor], equation: str, operands: Sequence[Tensor],
               path: Sequence[int]) -> Tensor:  # fmt: skip
        """Run an einsum and note it as one operator.

        It comes here before it is taken apart, which would leave products of which nothing is
        added up as plain multiplications.

        Args:
            run: Runs it.
            equation: As NumPy has it.
            operands: In its order.
            path: Which two are multiplied next, as one flat list; empty: from left to right.
        """
        if self._hidden:
            return run()
        constants = self.constants
        noted = any(map(constants.is_activation, operands)) or (
            any(map(constants.is_weight, operands))
            and contracts(equation, [tensor.dim() for tensor in operands])
        )
        named = {
            "equation": equation,
            "operands": [constants.operand(tensor) for tensor in operands],
            "path": tuple(path),
        }  # fmt: skip
        self._hidden += 1
        try:
            out = run()
        finally:
            self._hidden -= 1
        if noted:
            call = AtenCall("einsum", named, (constants.operand(out),))
            self.steps.append(Step("aten::einsum", self._stack[-1], call))
            self._activate([out], operands)
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

    def _multiplies_weight(self, func: Any, tensors: list[Tensor]) -> bool:
        return _name(func) in _PRODUCTS and any(map(self.constants.is_weight, tensors))

    def _note(
        self, func: Any, named: dict[str, Any], args: Any, results: list[Tensor], tensors: Any
    ) -> None:
        name = _name(func)
        if not self._hidden and not func.is_view and name not in FREE and results:
            outputs = tuple(map(self.constants.operand, results))
            call = AtenCall(name, named, outputs)
            self.steps.append(Step(func._schema.name, self._stack[-1], call))
        self._activate(results, tensors, self._window(name, args))

    def _activate(
        self, results: Sequence[Tensor], tensors: Sequence[Tensor], window: Window | None = None
    ) -> None:
        dependent = any(map(self.constants.is_dependent, tensors))
        for tensor in results:
            self.constants.activate(tensor, window, () if dependent else tensors)

    def _window(self, name: str, args: tuple[Any, ...]) -> Window | None:
        """Where the result has real values, if it is padded."""
        if name in _KEEP_WINDOW or (name == "unsqueeze" and args[1] == 0):
            return self.constants.window(args[0])
        if name == "constant_pad_nd" and (len(args) < 3 or args[2] == 0):
            # Listed from the last dimension on, before and after in turn.
            before, after = args[1][::2][::-1], args[1][1::2][::-1]
            return products.padded(self.constants.operand(args[0]), before, after)
        return None

    def _named(
        self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]
    ) -> dict[str, Any]:
        """Arguments by their names in the schema, defaults too, tensors as operands."""
        named = {}
        dependent = any(map(self.constants.is_dependent, tensors))
        for index, argument in enumerate(func._schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            value = args[index] if index < len(args) else kwargs.get(argument.name, default)
            if argument.name == _ROUTING and isinstance(value, Tensor):
                value = _ends(value)
            dims = _WEIGHTS.get(argument.name) if dependent and _name(func) in _PRODUCTS else None
            if isinstance(value, Tensor) and dims is not None and dims in (0, value.dim()):
                named[argument.name] = self.constants.operand(value, is_weight=True)
            else:
                named[argument.name] = pytree.tree_map_only(Tensor, self.constants.operand, value)
        return named


def _ends(offsets: Tensor) -> tuple[int, ...]:
    if isinstance(offsets, FakeTensor):
        raise NeedsValuesError
    return tuple(offsets.tolist())


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is a sequence of others, whatever it is given."""
    return func.namespace != "prim" and bool(func._can_decompose())


def _name(func: Any) -> str:
    """``relu`` for ``aten::relu_``; other namespaces stay."""
    name: str = func._schema.name
    return name.removeprefix("aten::").removesuffix("_")
