"""What verification runs: a converted model, and its original on the same modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.core.forward import SparseForward
from st3fx.core.inputs import Example
from st3fx.core.kinds import is_dense
from st3fx.core.settled import Left, settled
from st3fx.core.state import preserved, seed_everything
from st3fx.passes.written import Kept


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        model: With ``forwards`` installed.
        example: A call as in training.
        forwards: All sparse forwards of the model.
        left: Mode -> what a call leaves in attributes: graphs are captured as of the second call.
        written: Parameters that the forward writes to -> tensors that have their values.
    """

    model: nn.Module
    example: Example
    forwards: Sequence[SparseForward]
    left: Mapping[bool, Sequence[Left]]
    written: Mapping[str, Tensor] = field(default_factory=dict)

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Whatever runs inside, the model is afterwards as it was, its parameters too."""
        kept = Kept(self.model, self.written)
        with preserved(self.model):
            try:
                yield
            finally:
                kept.set_back()

    @contextlib.contextmanager
    def original(self) -> Iterator[None]:
        """The model as it was before the conversion, inside."""
        for forward in self.forwards:
            forward.uninstall()
        try:
            yield
        finally:
            for forward in self.forwards:
                forward.install()

    def forward(self, seed: int) -> Any:
        """The output in train mode."""
        with torch.enable_grad():
            return self._run(self.example, True, seed)

    def step(self, seed: int) -> Any:
        """The output in train mode, with the gradients of a loss of it in the parameters."""
        with torch.enable_grad():
            output = self.forward(seed)
            losses = [
                _weighted_sum(leaf)
                for leaf in pytree.tree_leaves(output)
                if isinstance(leaf, Tensor) and leaf.requires_grad
            ]
            if losses:
                torch.stack(losses).sum().backward()
        return output

    def evaluate(self, example: Example | None = None) -> Any:
        """The output in eval mode, of the example or of another call."""
        with torch.no_grad():
            return self._run(example or self.example, False, 0)

    def _run(self, example: Example, training: bool, seed: int) -> Any:
        seed_everything(seed)
        with settled(self.left[training]):
            return example.run(self.model.train(training))


def _weighted_sum(tensor: Tensor) -> Tensor:
    """A loss that no normalisation makes constant: each element with another weight."""
    if not is_dense(tensor):
        # Of sparse and nested tensors only some operators have gradients.
        tensor = tensor.to_padded_tensor(0.0) if tensor.is_nested else tensor.to_dense()
    weights = (
        torch.arange(tensor.numel(), dtype=torch.float32, device=tensor.device).mul_(0.7).sin_()
    )
    loss: Tensor = (tensor.flatten().float() * weights).mean() * tensor.numel() ** 0.5
    return loss


@contextlib.contextmanager
def own_gradients(model: nn.Module) -> Iterator[None]:
    """Empty gradients inside, the present ones back afterwards."""
    saved = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, grad in saved:
            parameter.grad = grad
