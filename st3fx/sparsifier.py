"""The sparsifier: raises the sparsity with the optimizer's steps and sets the thresholds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from st3fx import functional
from st3fx.errors import StateError
from st3fx.forward import Held, sparse_forwards
from st3fx.methods.base import Method
from st3fx.methods.st3 import check_sparsity
from st3fx.sites import Site, SparsityPlan
from st3fx.threshold import global_threshold


class Sparsifier:
    """Drives the sparsity of a converted model.

    Weights are looked up by name at each update, never kept, so that the model may be moved,
    wrapped or loaded at any time. All state is in the model's own buffers: thresholds and the step.
    """

    def __init__(self, model: nn.Module) -> None:
        """Drive ``model``.

        Raises:
            StateError: If the model was not converted.
        """
        if not hasattr(model, "st3fx_plan"):
            raise StateError(
                f"{type(model).__name__} is not a converted model: give what convert gave"
            )
        self.model = model

    @property
    def plan(self) -> SparsityPlan:
        """The plan of the conversion."""
        plan: SparsityPlan = self.model.st3fx_plan  # type: ignore[assignment]
        return plan

    @property
    def method(self) -> Method:
        """The method with its settings."""
        method: Method = self.model.st3fx_method  # type: ignore[assignment]
        return method

    @property
    def target(self) -> float:
        """Final sparsity over the sites."""
        return self.method.sparsity

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return int(self._step_buffer)

    @property
    def _step_buffer(self) -> Tensor:
        return self.model.get_buffer("st3fx_step")

    def _held(self) -> dict[str, Held]:
        return {item.site: item for f in sparse_forwards(self.model) for item in f.held}

    def step(self) -> None:
        """Count one optimizer step and set the thresholds for the sparsity that follows from it.

        Raises:
            StateError: If the number of steps was not given to ``convert``.
        """
        total: int | None = self.model.st3fx_total_steps  # type: ignore[assignment]
        if total is None:
            raise StateError(
                "the schedule needs the number of optimizer steps: "
                "give total_steps= to convert, or use set_sparsity()"
            )
        self._step_buffer.add_(1)
        self.set_sparsity(self.method.schedule.sparsity(self.steps, total, self.target))

    @torch.no_grad()
    def set_sparsity(self, sparsity: float) -> None:
        """Set all thresholds for ``sparsity`` over the present weights; 0 makes them inactive.

        Raises:
            MethodError: For a sparsity outside [0, 1).
        """
        check_sparsity(sparsity)
        held = self._held()
        scales = [self.method.scale(site) for site in self.plan.sites]
        weights = [_whole(held[site.name].weight()) for site in self.plan.sites]
        level = global_threshold(weights, scales, sparsity) if sparsity > 0 else None
        for site, scale in zip(self.plan.sites, scales, strict=True):
            value = functional.INACTIVE if level is None else level * scale
            for buffer in self._threshold_buffers(site):
                buffer.copy_(value) if isinstance(value, Tensor) else buffer.fill_(value)

    def _threshold_buffers(self, site: Site) -> list[Tensor]:
        buffers = []
        for name in (site.name, *site.aliases):
            owner, _, parameter = name.rpartition(".")
            module = self.model.get_submodule(owner)
            buffers.append(module.get_buffer(f"st3fx_{parameter}_threshold"))
        return buffers

    def penalty(self) -> Tensor:
        """What to add to the loss: 0, unless the method learns its thresholds."""
        device = next(self.model.parameters()).device
        return torch.zeros((), device=device)

    @property
    def thresholds(self) -> dict[str, float]:
        """Layer threshold by full name; negative while inactive."""
        return {site.name: float(self._threshold_buffers(site)[0]) for site in self.plan.sites}

    @torch.no_grad()
    def effective_weights(self) -> dict[str, Tensor]:
        """Effective weight by full name, without gradient."""
        held = self._held()
        return {
            site.name: held[site.name].effective_of(_whole(held[site.name].weight())).detach()
            for site in self.plan.sites
        }

    @property
    def sparsity(self) -> float:
        """Share of zeros among the effective weights of all sites."""
        zeros = sum(int((w == 0).sum()) for w in self.effective_weights().values())
        return zeros / self.plan.numel

    def state_dict(self) -> dict[str, Any]:
        """Step, thresholds and the names that they belong to."""
        return {"step": self.steps, "thresholds": self.thresholds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            StateError: If the state is of a model with other sites.
        """
        names = {site.name for site in self.plan.sites}
        thresholds = state.get("thresholds", {})
        if "step" not in state:
            raise StateError("the state has no step: give what Sparsifier.state_dict() gave")
        if set(thresholds) != names:
            odd = sorted(names ^ set(thresholds))
            raise StateError(
                f"the state is of another model: {len(odd)} sites differ, for example {odd[0]}"
            )
        self._step_buffer.fill_(int(state["step"]))
        for site in self.plan.sites:
            for buffer in self._threshold_buffers(site):
                buffer.fill_(thresholds[site.name])


def _whole(weight: Tensor) -> Tensor:
    """A sharded weight (FSDP2) gathered, any other as it is."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
