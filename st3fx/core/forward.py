"""What a converted module runs: a graph whose guards hold, else its own forward.

A :class:`SparseForward` stands as ``forward`` in the ``__dict__`` of a module of the user's model,
so that class, hooks, attributes and state-dict keys stay.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx.core.formula import Inputs
from st3fx.core.graphs import CompiledGraph, Variant
from st3fx.core.state import preserved
from st3fx.errors import ForwardError
from st3fx.methods.base import Method


@dataclass(frozen=True)
class Held:
    """A weight that a module's own forward multiplies with, and how to make it effective.

    Attributes:
        site: Full name of the site.
        owner: The module that has the parameter and the state.
        parameter: The parameter's name there.
        places: Where the forward may read the parameter, as (module, name): several if tied.
        state: Names of the method's tensors there, in the order of the op's arguments.
        method: Gives the operator, which as an object could not be pickled.
        constants: The operator's remaining arguments.
        compute: For a computed weight, its graph as a function of the owner.
    """

    site: str
    owner: nn.Module
    parameter: str
    places: tuple[tuple[nn.Module, str], ...]
    state: tuple[str, ...]
    method: Method
    constants: tuple[Any, ...]
    compute: CompiledGraph | None = None

    def weight(self) -> Tensor:
        """The weight before the threshold; a computed one as in eval mode, without gradient."""
        if self.compute is None:
            parameter: Tensor = self.owner._parameters[self.parameter]  # type: ignore[assignment]
            return parameter
        with preserved(self.owner), torch.no_grad():
            weight: Tensor = self.compute(self.owner.eval())
            return weight

    def effective(self) -> Tensor:
        """The effective weight, with gradients to the latent one."""
        return self.method.op(*self.inputs()[1:4], *self.constants)

    def inputs(self) -> Inputs:
        """What the effective weight is computed from."""
        threshold, mask = (getattr(self.owner, name) for name in self.state)
        return Inputs(self.method.formula, self.weight(), threshold, mask, self.constants)

    def put(self, tensor: Tensor) -> None:
        """Make ``tensor`` what the forward reads."""
        for module, name in self.places:
            module._parameters[name] = tensor  # type: ignore[assignment]
            if isinstance(module, nn.RNNBase):
                # Recurrent modules read their weights from a second list.
                module._flat_weights[module._flat_weights_names.index(name)] = tensor


@contextlib.contextmanager
def effective_parameters(held: Sequence[Held]) -> Iterator[None]:
    """Effective weights in place of the parameters, as ``torch.func.functional_call`` does it.

    The module is changed while it runs: two threads must not run it at once on this path.
    """
    latent = [item.weight() for item in held]
    for item, tensor in zip(held, [item.effective() for item in held], strict=True):
        item.put(tensor)
    try:
        yield
    finally:
        for item, parameter in zip(held, latent, strict=True):
            item.put(parameter)


class Swaps:
    """How many calls of a module with swapped weights are under way."""

    def __init__(self) -> None:
        self.running = 0


@dataclass(frozen=True)
class Lent:
    """A weight that a module above holds and this one multiplies with too.

    Attributes:
        held: The weight.
        holders: The calls of the modules that hold it: during these it is swapped already.
    """

    held: Held
    holders: tuple[Swaps, ...]


class SparseForward:
    """The forward of a converted module.

    Tries its graphs; where none applies, runs the module's own forward with the weights that this
    forward itself multiplies with swapped for their effective weights. Modules below it have their
    own ``SparseForward``, so the fallback is right at every depth.
    """

    is_sparse_forward = True

    def __init__(
        self, name: str, module: nn.Module, variants: Sequence[Variant], held: Sequence[Held]
    ) -> None:
        """Prepare; :meth:`install` puts it in place.

        Args:
            name: Full name of ``module`` in the model.
            module: The module whose forward this is.
            variants: Its graphs, the likeliest first.
            held: The weights that its own forward multiplies with.
        """
        self.name = name
        self.module = module
        self.variants = list(variants)
        self.held = list(held)
        self.lent: list[Lent] = []
        self.swaps = Swaps()
        self.replaced = module.__dict__.get("forward")

    def install(self) -> None:
        """Become the module's forward."""
        self.module.__dict__["forward"] = self

    def uninstall(self) -> None:
        """Give the module its own forward back."""
        if self.replaced is None:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.__dict__["forward"] = self.replaced

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward as it is, with dense weights."""
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the module's own forward: exporters and trainers read it."""
        forward = self.replaced or type(self.module).forward.__get__(self.module)
        return inspect.signature(forward)

    @property
    def __code__(self) -> CodeType:
        """That of the module's own forward: torch.export asks where it stands."""
        code: CodeType = inspect.unwrap(type(self.module).forward).__code__
        return code

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a graph that applies, else the module's own forward with effective weights."""
        # A global hook would miss the calls that a graph has in it. Of a layer that computes its
        # weight there is no other way, and in its own graph there is no other layer.
        computed = any(item.compute is not None for item in self.held)
        if computed or not nn.modules.module._has_any_global_hook():
            for variant in self.variants:
                tensors = variant.tensors(args, kwargs)
                if tensors is not None:
                    return variant(tensors)
        if computed:
            raise ForwardError(
                f"{self.name or type(self.module).__name__}: its weight is computed in its "
                "forward, and it was called in another way than at conversion; convert it with "
                "this call"
            )
        # Called from outside its holder, a lent weight is still latent.
        lent = [x.held for x in self.lent if not any(swaps.running for swaps in x.holders)]
        with effective_parameters([*self.held, *lent]):
            self.swaps.running += 1
            try:
                return self.original(*args, **kwargs)
            finally:
                self.swaps.running -= 1


def sparse_forwards(model: nn.Module) -> list[SparseForward]:
    """All installed sparse forwards, outer modules first."""
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    return [forward for forward in forwards if isinstance(forward, SparseForward)]


class Islands(Sequence[fx.GraphModule]):
    """The captured graphs of a converted model as graph modules, built when they are looked at."""

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        """Of the modules ``names`` of ``model``, as it is converted at each look."""
        self._model = model
        self._names = names

    def _entries(self) -> list[tuple[SparseForward, Variant]]:
        forwards = [f for f in sparse_forwards(self._model) if f.name in self._names]
        return [(forward, variant) for forward in forwards for variant in forward.variants]

    def __len__(self) -> int:
        """How many graphs."""
        return len(self._entries())

    def __getitem__(self, index: Any) -> Any:
        """One graph module, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        forward, variant = self._entries()[index]
        module = variant.graph_module()
        module.st3fx_name = forward.name
        module.st3fx_mode = variant.mode
        return module
