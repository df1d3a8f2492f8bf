"""What a converted module runs: a graph whose guards hold, else its own forward.

The module's own forward reads effective weights wherever it reads attributes (see
``st3fx.modules.converted``), so that the two compute the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from st3fx.errors import ForwardError
from st3fx.graphs.graph import Variant
from st3fx.modules.attributes import is_transformed
from st3fx.modules.compiled import before_compiling
from st3fx.modules.marks import (
    FORWARD,
    ISLAND,
    MODE,
    Training,
    found_conversion,
    is_root,
    own_forward,
)
from st3fx.sparsity.recompute import dropping


class SparseForward:
    """The forward of a converted module.

    Tries its graphs; where none applies, runs the forward of the user's class. Modules below it
    have their own, so that this is right at every depth.
    """

    is_sparse_forward = True

    def __init__(
        self,
        name: str,
        module: nn.Module,
        variants: Sequence[Variant],
        computed: str = "",
        handed: str = "",
    ) -> None:
        """Prepare; :meth:`install` puts it in place.

        Args:
            name: Full name of ``module`` in the model.
            module: The module whose forward this is.
            variants: Its graphs, the likeliest first.
            computed: Name of a weight that the forward computes by itself, so that nothing but a
                graph can make it sparse; may be empty.
            handed: Name of a weight that the forward gets by ``parameters()`` or the like, which
                is the effective weight in a graph alone; may be empty.
        """
        self.name = name
        self.module = module
        self.variants = list(variants)
        self.computed, self.handed = computed, handed
        self.run: Training | None = None
        self.replaced: Any = None

    def install(self, run: Training | None = None) -> None:
        """Become the module's forward.

        It is the method of the module's converted class, unless the user had put another forward on
        the module itself: then it stands in its place.
        """
        self.run = run if run is not None else self.run
        self.module.__dict__[FORWARD] = self
        self.replaced = self.module.__dict__.get("forward")
        if self.replaced is not None:
            self.module.__dict__["forward"] = self

    def uninstall(self) -> None:
        """Give the module its own forward back; the graphs stay, for :meth:`install`."""
        self.module.__dict__.pop(FORWARD, None)
        if self.module.__dict__.get("forward") is self:
            self.module.__dict__["forward"] = self.replaced

    def end(self) -> None:
        """Uninstall for good: a wrapper that still holds this runs the module's own forward."""
        self.uninstall()
        self.variants, self.computed, self.handed, self.run = [], "", "", None

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward as it is."""
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return own_forward(self.module)(self.module, *args, **kwargs)

    def of_copy(self, module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        """What a shallow copy runs that has this forward, too: its own, as its graphs are not.

        Raises:
            ForwardError: If nothing but a graph makes it sparse.
        """
        if self._needs_graph:
            raise ForwardError(
                f"{self._reason}, and a shallow copy of that has no graph: use copy.deepcopy, or "
                "fold first"
            )
        return own_forward(module)(module, *args, **kwargs)

    @property
    def _needs_graph(self) -> bool:
        """Whether the module's own forward would compute with a latent weight."""
        return bool(self.computed or (self.handed and self.variants))

    @property
    def _reason(self) -> str:
        where = f"in the forward of {self.name or type(self.module).__name__}"
        if self.computed:
            return f"{self.computed} is computed {where}"
        return f"{self.handed} is read by parameters() or the like {where}"

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the module's own forward: exporters and trainers read it."""
        forward = self.replaced or own_forward(self.module).__get__(self.module)
        return inspect.signature(forward)

    @property
    def __code__(self) -> CodeType:
        """That of the module's own forward: torch.export asks where it stands."""
        code: CodeType = inspect.unwrap(own_forward(self.module)).__code__
        return code

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a graph that applies, else the module's own forward."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self._drops_weights():
            with dropping():
                return self._answer(args, kwargs, compiling=False)
        return self._answer(args, kwargs, compiling=compiling)

    def _drops_weights(self) -> bool:
        """Whether the backward of this forward computes effective weights again."""
        root = None if self.run is None else self.run.root
        conversion = None if root is None else found_conversion(root)
        return (
            conversion is not None
            and conversion.recompute_weights
            and torch.is_grad_enabled()
            and not is_transformed()
        )

    def _answer(self, args: Any, kwargs: Any, *, compiling: bool) -> Any:
        if self.run is not None and not compiling:
            self.run.prepare(self.module.training, whole=is_root(self.module))
        elif self.run is not None and (self.run.follows or not self.module.training):
            before_compiling(self.run.key)
        # Hooks on all modules see those that a graph has inlined; a computed weight needs it.
        needed = self._needs_graph
        if needed or not nn.modules.module._has_any_global_hook():
            for variant in self.variants:
                tensors = variant.tensors(args, kwargs)
                if tensors is not None:
                    return variant(tensors)
        if needed:
            hint = "" if self.computed else ", or read it as an attribute (layer.weight)"
            raise ForwardError(
                f"{self._reason}, which was called in another way than at conversion; convert it "
                f"with this call{hint}"
            )
        if self.run is not None and not compiling and is_root(self.module):
            self.run.warn_of_drift()
        return self.original(*args, **kwargs)


def sparse_forwards(model: nn.Module) -> list[SparseForward]:
    """All installed sparse forwards, outer modules first."""
    forwards = [module.__dict__.get(FORWARD) for module in model.modules()]
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
        module.__dict__ |= {ISLAND: forward.name, MODE: variant.mode}
        return module
