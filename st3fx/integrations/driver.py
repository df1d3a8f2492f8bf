"""What a trainer's callback does with a converted model, whichever trainer it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from st3fx.api import fold
from st3fx.errors import StateError, few
from st3fx.modules.copying import copied
from st3fx.modules.marks import is_root
from st3fx.passes.convert.fold import is_converted
from st3fx.sparsifier.sparsifier import Sparsifier


class Driver:
    """Steps a converted model by a trainer's optimizer, and knows when its target is reached.

    Attributes:
        sparsifier: Of the model that is trained, or of the one in it that is converted.
    """

    def __init__(self, model: nn.Module) -> None:
        """Drive ``model``, or the converted model somewhere in it (below adapters, a wrapper).

        Raises:
            StateError: If it is not converted.
        """
        self.sparsifier = Sparsifier(converted_in(model))
        self._asks = self.sparsifier.total_steps is None

    def begin(self, optimizers: Iterable[Any], total_steps: int | None) -> None:
        """Count the steps of an optimizer from here on: of the first that trains a site's weights.

        Args:
            optimizers: The trainer's, wrapped or not.
            total_steps: Optimizer steps of the whole training, where the trainer knows; taken if
                ``convert`` was given none.

        Raises:
            StateError: If none of them trains the converted model, whose sparsity is not held.
        """
        sparsifier = self.sparsifier
        if self._asks and total_steps is not None:
            sparsifier.total_steps = total_steps
        sparsifier.detach()
        names = []
        for optimizer in optimizers:
            try:
                sparsifier.attach(optimizer)
            except StateError:
                names.append(type(getattr(optimizer, "optimizer", optimizer)).__name__)
            else:
                return
        if sparsifier.held is None and not sparsifier.frozen:
            raise StateError(
                f"{few(names)} trains none of the converted model's weights: make the optimizer "
                "from its parameters, or call set_sparsity() or freeze() where they shall stay"
            )

    def end(self) -> None:
        """Let go of the optimizer."""
        self.sparsifier.detach()

    @property
    def reached(self) -> bool:
        """Whether what is evaluated now may be the best."""
        return self.sparsifier.reached

    @property
    def where(self) -> str:
        """Where a training has ended that has not reached its target, or is to leave it again."""
        sparsifier = self.sparsifier
        now, target = sparsifier.run.sparsity or 0.0, sparsifier.target or 0.0
        if now < target:
            return f"at sparsity {now:.4g} of the target {target:.4g}"
        return f"in a sparse phase of {sparsifier.method.name} that is not its last"

    def values(self) -> dict[str, float]:
        """What to log: the share of zeros, and the global threshold, or the mean of learned ones.

        Both are looked up in the weights: call it as often as something is logged.
        """
        sparsifier = self.sparsifier
        level = sparsifier.level
        layers = sparsifier.thresholds.values() if level is None else ()
        mean = sum(layers) / len(layers) if layers else 0.0
        threshold = mean if level is None else float(level)
        return {"sparsity": sparsifier.sparsity, "threshold": max(0.0, threshold)}

    def fold(self, model: nn.Module, *, inplace: bool) -> nn.Module:
        """Fold the converted model that is, or is in, ``model``.

        Args:
            model: The trainer's model.
            inplace: Fold it, and not a copy of it.

        Returns:
            The folded model, or the plain layer that stands for a model of one computed layer.
        """
        whole = model if inplace else copied(model)
        root = converted_in(whole)
        folded = fold(root, inplace=True)
        return folded if root is whole else whole


def converted_in(model: nn.Module) -> nn.Module:
    """The converted model that a module is or holds.

    Raises:
        StateError: If there is none, or several.
    """
    roots = [module for module in model.modules() if is_root(module)]
    if len(roots) == 1:
        return roots[0]
    name = type(model).__name__
    if roots:
        raise StateError(f"{name} holds {len(roots)} converted models: drive each by itself")
    if is_converted(model):
        raise StateError(f"{name} is a part of a converted model: give the whole")
    raise StateError(f"{name} is not converted, or has been folded: convert it before")
