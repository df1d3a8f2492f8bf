"""What a converted module runs: a graph whose guards hold, else its own forward.

A :class:`SparseForward` stands as ``forward`` in the ``__dict__`` of a module of the user's model, so
that class, hooks, attributes and state-dict keys stay. The graphs' code runs with the module itself
as ``self``: parameters and children are looked up at each call and never go stale.
"""

from __future__ import annotations

import collections
import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx.errors import ForwardError
from st3fx.inputs import CallSpec, same_value
from st3fx.methods.base import Method
from st3fx.state import preserved


@fx.wrap
def ordered_dict(items: list[list[Any]]) -> collections.OrderedDict[Any, Any]:
    """An ``OrderedDict`` as a node, where a forward returns one."""
    return collections.OrderedDict((key, value) for key, value in items)


@dataclass(frozen=True)
class Guard:
    """An attribute that traced code read, and the value that it saw."""

    module: nn.Module
    attribute: str
    expected: Any

    def holds(self) -> bool:
        """Whether the attribute has that value now."""
        return same_value(self.module.__dict__.get(self.attribute), self.expected)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything runs before or after the module's forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class CompiledGraph:
    """An fx graph that never changes again, as a function of (module, *tensors)."""

    def __init__(self, graph: fx.Graph) -> None:
        """Compile ``graph``; its targets are relative to the module."""
        self.graph = graph
        self._function = _compile(graph)

    def __call__(self, module: nn.Module, *tensors: Any) -> Any:
        """Run the graph's code with ``module`` as ``self``."""
        return self._function(module, *tensors)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledGraph:
        """Copies share the graph."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pickled as a graph module over a skeleton: names and code, no tensors."""
        return {"graph_module": fx.GraphModule(_skeleton(self.graph), _plain_copy(self.graph))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile the code again."""
        self.graph = state["graph_module"].graph
        self._function = _compile(self.graph)


def _compile(graph: fx.Graph) -> Callable[..., Any]:
    function: Callable[..., Any] = type(fx.GraphModule(_skeleton(graph), graph)).forward
    return function


def _plain_copy(graph: fx.Graph) -> fx.Graph:
    """Without the tracer's class, which a pickle would ask for."""
    plain = fx.Graph()
    plain.output(plain.graph_copy(graph, {}))
    return plain


def _skeleton(graph: fx.Graph) -> nn.Module:
    """A module that has every target of ``graph`` and nothing else."""
    root = nn.Module()
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        *path, name = node.target.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if node.op == "call_module":
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
        else:
            owner.register_parameter(name, nn.Parameter(torch.empty(0), requires_grad=False))
    return root


class Variant:
    """One graph of an island: for one structure of calls, under its guards."""

    def __init__(
        self,
        mode: str,
        spec: CallSpec,
        graph: fx.Graph,
        guards: Sequence[Guard],
        modules: Sequence[nn.Module],
    ) -> None:
        """Compile a graph.

        Args:
            mode: ``train``, ``eval``, or ``both``; for display.
            spec: The calls that it answers.
            graph: Placeholders are the call's tensors; other targets are relative to the module.
            guards: What must hold.
            modules: The module itself, then those whose calls the graph replaces.
        """
        self.mode = mode
        self.spec = spec
        self.run = CompiledGraph(graph)
        self.guards = tuple(guards)
        self.modules = tuple(modules)
        self.children = [[*module._modules.values()] for module in self.modules]

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | None:
        """The graph's inputs for a call, or ``None`` if the graph does not apply to it."""
        for guard in self.guards:
            if not guard.holds():
                return None
        if self._rebuilt() or self._hooked():
            return None
        return self.spec.tensors(args, kwargs)

    def _rebuilt(self) -> bool:
        """Whether a module has other children than the traced ones."""
        for module, children in zip(self.modules, self.children, strict=True):
            if [*module._modules.values()] != children:
                return True
        return False

    def _hooked(self) -> bool:
        """Whether a module whose call is inlined has got hooks."""
        return any(has_hooks(module) for module in self.modules[1:])

    def graph_module(self) -> fx.GraphModule:
        """The graph as a printable, runnable module that shares the module's parameters."""
        root = self.modules[0]
        return fx.GraphModule(root, self.run.graph, class_name=type(root).__name__)


@dataclass(frozen=True)
class Held:
    """A weight that a module's own forward multiplies with, and how to make it effective.

    Attributes:
        site: Full name of the site.
        owner: The module that has the parameter: the forward's own or one below it.
        parameter: The parameter's name there.
        state: Names of the method's tensors there, in the order of the op's arguments.
        method: Gives the operator, which as an object could not be pickled.
        constants: The operator's remaining arguments.
        compute: For a computed weight, its graph as a function of the owner.
    """

    site: str
    owner: nn.Module
    parameter: str
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
        state = [getattr(self.owner, name) for name in self.state]
        return self.method.op(self.weight(), *state, *self.constants)

    def put(self, tensor: Tensor | None) -> None:
        """Make ``tensor`` what the owner's forward reads."""
        self.owner._parameters[self.parameter] = tensor  # type: ignore[assignment]
        if isinstance(self.owner, nn.RNNBase):
            # Recurrent modules read their weights from a second list.
            index = self.owner._flat_weights_names.index(self.parameter)
            self.owner._flat_weights[index] = tensor


@contextlib.contextmanager
def effective_parameters(held: Sequence[Held]) -> Iterator[None]:
    """Effective weights in place of the parameters, as ``torch.func.functional_call`` does it.

    The module is changed while it runs: two threads must not run it at once on this path.
    """
    latent = [item.owner._parameters[item.parameter] for item in held]
    for item, tensor in zip(held, [item.effective() for item in held], strict=True):
        item.put(tensor)
    try:
        yield
    finally:
        for item, parameter in zip(held, latent, strict=True):
            item.put(parameter)


class SparseForward:
    """The forward of a converted module.

    Tries its graphs; where none applies, runs the module's own forward with the weights that this
    forward itself multiplies with swapped for their effective weights. Modules below it have their
    own ``SparseForward``, so the fallback is right at every depth.
    """

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

    @property  # type: ignore[misc]
    def __signature__(self) -> inspect.Signature:
        """That of the module's own forward: exporters and trainers read it."""
        forward = self.replaced or type(self.module).forward.__get__(self.module)
        return inspect.signature(forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a graph that applies, else the module's own forward with effective weights."""
        if not nn.modules.module._has_any_global_hook():
            for variant in self.variants:
                tensors = variant.tensors(args, kwargs)
                if tensors is not None:
                    return variant.run(self.module, *tensors)
        if any(item.compute is not None for item in self.held):
            raise ForwardError(
                f"{self.name or type(self.module).__name__}: its weight is computed in its forward, "
                "and it was called in another way than at conversion; convert it with this call"
            )
        with effective_parameters(self.held):
            return self.original(*args, **kwargs)


def sparse_forwards(model: nn.Module) -> list[SparseForward]:
    """All installed sparse forwards, outer modules first."""
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    return [forward for forward in forwards if isinstance(forward, SparseForward)]


class Islands(Sequence[fx.GraphModule]):
    """The captured graphs of a converted model as graph modules, built when they are looked at."""

    def __init__(self, model: nn.Module) -> None:
        """Of ``model``, as it is converted at each look."""
        self._model = model

    def _entries(self) -> list[tuple[SparseForward, Variant]]:
        return [(f, variant) for f in sparse_forwards(self._model) for variant in f.variants]

    def __len__(self) -> int:
        """How many graphs."""
        return len(self._entries())

    def __getitem__(self, index: Any) -> Any:
        """One graph module, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        forward, variant = self._entries()[index]
        module = variant.graph_module()
        module.st3fx_name = forward.name  # type: ignore[assignment]
        module.st3fx_mode = variant.mode  # type: ignore[assignment]
        return module
