"""The sparsifier: drives the thresholds of a converted model with the optimizer's steps."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.core import cache
from st3fx.core.forward import Held, sparse_forwards
from st3fx.core.functional import INACTIVE
from st3fx.core.masks import put_mask
from st3fx.core.shards import Spread, local, spread_of, whole
from st3fx.core.site_state import places, state_name, state_of
from st3fx.core.sites import SparsityPlan
from st3fx.core.threshold import GlobalThreshold
from st3fx.core.unloaded import complete
from st3fx.errors import EmptyLayerWarning, HalfPrecisionWarning, StateError
from st3fx.methods.base import LearnedMethod, Method, ScheduledMethod, check_sparsity


class Sparsifier:
    """Drives the sparsity of a converted model.

    Weights are looked up by name at each update, never kept, so that the model may be moved,
    wrapped or loaded at any time. All state is in the model itself: thresholds, masks and the step.
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
        self._finder = GlobalThreshold()
        self._warned: set[str] = set()
        self._counted: tuple[Tensor, int, int] | None = None  # step buffer, its version, its value
        self.level: Tensor | None = None
        """The last global threshold ``T``: 0-dimensional; ``None`` while there is none."""

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
    def target(self) -> float | None:
        """Final sparsity over the sites; ``None`` where thresholds are learned."""
        return self.method.target

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        buffer = self.model.get_buffer("st3fx_step")
        counted = self._counted
        if counted is None or counted[0] is not buffer or counted[1] != buffer._version:
            counted = self._counted = buffer, buffer._version, int(buffer)  # this waits for a GPU
        return counted[2]

    def _count(self, steps: int) -> None:
        buffer = self.model.get_buffer("st3fx_step")
        buffer.fill_(steps)
        self._counted = buffer, buffer._version, steps

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` was called."""
        return any(state_of(self.model, site, "mask")[0].numel() for site in self.plan.sites)

    def _held(self) -> dict[str, Held]:
        return {item.site: item for f in sparse_forwards(self.model) for item in f.held}

    def step(self) -> None:
        """Count one optimizer step and set the thresholds for the sparsity that follows from it.

        Call it after every step that the optimizer really made: once with gradient accumulation,
        not at all where a gradient scaler skipped the step.

        Raises:
            StateError: If the method needs the number of steps and ``convert`` was not given it, or
                weights are NaN.
        """
        complete(self.model)
        method = self.method
        total = self._total_steps() if isinstance(method, ScheduledMethod) else 0
        steps = self.steps + 1
        self._count(steps)
        held = self._held()
        self._warn_of_half(held)
        if isinstance(method, LearnedMethod):
            self._after_step(method, held)
        elif isinstance(method, ScheduledMethod) and not self.frozen:
            every: int = self.model.st3fx_update_every  # type: ignore[assignment]
            if steps % every == 0 or steps == total:
                self._set(method, method.schedule.sparsity(steps, total, method.sparsity), held)
        self._refresh_effective(held)

    def _total_steps(self) -> int:
        total: int | None = self.model.st3fx_total_steps  # type: ignore[assignment]
        if total is None:
            raise StateError(
                "the schedule needs the number of optimizer steps: "
                "give total_steps= to convert, or use set_sparsity()"
            )
        return total

    def set_sparsity(self, sparsity: float) -> None:
        """Set all thresholds for ``sparsity`` over the present weights; 0 makes them inactive.

        Raises:
            MethodError: For a sparsity outside [0, 1).
            StateError: If thresholds are learned or masks are frozen, or weights are NaN or on the
                meta device.
        """
        check_sparsity(sparsity)
        complete(self.model)
        method = self.method
        if not isinstance(method, ScheduledMethod):
            raise StateError(f"{method.name} learns its thresholds: no sparsity can be set")
        if self.frozen:
            raise StateError("the masks are frozen: the sparsity stays as it is")
        held = self._held()
        self._set(method, sparsity, held)
        self._refresh_effective(held)

    def refresh(self) -> None:
        """Set the thresholds again, for the present step and the present weights.

        For weights that no optimizer step made: averaged ones (EMA), or another checkpoint's. With
        learned thresholds, which are weights themselves, nothing is to be done.

        Raises:
            StateError: As :meth:`step`.
        """
        method = self.method
        if isinstance(method, ScheduledMethod) and not self.frozen:
            total = self._total_steps()
            self._set(method, method.schedule.sparsity(self.steps, total, method.sparsity))
        self._refresh_effective(self._held())

    @torch.no_grad()
    def _set(
        self, method: ScheduledMethod, sparsity: float, held: dict[str, Held] | None = None
    ) -> None:
        held = self._held() if held is None else held
        sites = self.plan.sites
        scales = [method.scale(site) for site in sites]
        self.level = None
        if sparsity > 0:
            costs = [site.cost for site in sites] if method.budget == "macs" else None
            weights = [held[site.name].weight() for site in sites]
            self.level = self._finder.find(weights, scales, sparsity, costs)
            self._warn_of_empty([sites[i].name for i in self._finder.empty], sparsity)
        for site, scale in zip(sites, scales, strict=True):
            value = INACTIVE if self.level is None else self.level * scale
            for buffer in state_of(self.model, site, "threshold"):
                buffer.copy_(value) if isinstance(value, Tensor) else buffer.fill_(value)

    def _warn_of_empty(self, names: list[str], sparsity: float) -> None:
        for name in names:
            if name not in self._warned:
                self._warned.add(name)
                message = (
                    f"{name} has lost all of its weights at sparsity {sparsity:.4g}: exclude it, "
                    "lower the sparsity, or normalise magnitudes (st3-sigma)"
                )
                warnings.warn(message, EmptyLayerWarning, stacklevel=4)

    def _warn_of_half(self, held: dict[str, Held]) -> None:
        """Once: thresholds are fp32 whatever the weights are, steps are as fine as the weights."""
        half = {item.owner._parameters.get(item.parameter) for item in held.values()}
        names = {str(p.dtype) for p in half if p is not None and p.dtype.itemsize < 4}
        if names and "half precision" not in self._warned:
            self._warned.add("half precision")
            message = (
                f"weights of {', '.join(sorted(names))} are trained: steps smaller than their "
                "precision are lost; keep the model in float32 and compute under torch.autocast"
            )
            warnings.warn(message, HalfPrecisionWarning, stacklevel=3)

    @torch.no_grad()
    def _after_step(self, method: LearnedMethod, held: dict[str, Held]) -> None:
        for site in self.plan.sites:
            threshold = state_of(self.model, site, "threshold")[0]
            weight = held[site.name].weight()
            method.after_step(weight, threshold, site)  # type: ignore[arg-type]

    @torch.no_grad()
    def _refresh_effective(self, held: dict[str, Held]) -> None:
        cache.refresh(item.inputs() for item in held.values() if item.compute is None)

    @torch.inference_mode(False)  # masks made there could not be saved for a backward later on
    @torch.no_grad()
    def freeze(self) -> None:
        """Fix masks and thresholds from here on.

        What is zero now stays zero, whatever momentum, weight decay or a loaded checkpoint make of
        the latent weights, and gets no gradient. Scheduled thresholds keep their values. A copy
        that follows the model's buffers (``AveragedModel``) has to be frozen with it.
        """
        weights = self.effective_weights()
        for site in self.plan.sites:
            for module, parameter in places(self.model, site):
                put_mask(module, state_name(parameter, "mask"), weights[site.name] != 0)
        self._refresh_effective(self._held())

    def penalty(self) -> Tensor:
        """What to add to the loss: 0, unless the method learns its thresholds."""
        parts: dict[Spread, list[Tensor]] = {}
        if isinstance(self.method, LearnedMethod):
            for threshold in self.threshold_parameters():
                part = self.method.penalty(local(threshold))
                if part is not None:
                    parts.setdefault(spread_of(threshold), []).append(part)
        if not parts:
            return torch.zeros((), device=next(self.model.parameters()).device)
        totals = [spread.total(torch.stack(own).sum()) for spread, own in parts.items()]
        return torch.stack(totals).sum()

    def threshold_parameters(self) -> list[nn.Parameter]:
        """The thresholds that the optimizer trains; none for scheduled methods."""
        tensors = (state_of(self.model, site, "threshold")[0] for site in self.plan.sites)
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    @property
    def thresholds(self) -> dict[str, float]:
        """Layer threshold by full name, negative while inactive; the mean of several learned."""
        method = self.method
        values = {}
        for site in self.plan.sites:
            threshold = whole(state_of(self.model, site, "threshold")[0]).detach()
            level = method.level(threshold) if isinstance(method, LearnedMethod) else threshold
            values[site.name] = float(level.mean())
        return values

    @torch.no_grad()
    def effective_weights(self) -> dict[str, Tensor]:
        """Effective weight by full name, without gradient; gathered where weights are sharded."""
        held, weights = self._held(), {}
        for site in self.plan.sites:
            inputs = held[site.name].inputs()
            inputs = inputs._replace(weight=whole(inputs.weight), threshold=whole(inputs.threshold))
            out = torch.empty_like(inputs.weight, requires_grad=False)
            inputs.evaluate(out)
            weights[site.name] = out
        return weights

    @property
    def sparsity(self) -> float:
        """Share of zeros among the effective weights of all sites."""
        zeros = sum(w.numel() - int(w.count_nonzero()) for w in self.effective_weights().values())
        return zeros / self.plan.numel

    def empty_layers(self) -> tuple[str, ...]:
        """Sites that have lost all of their weights."""
        weights = self.effective_weights().items()
        return tuple(name for name, weight in weights if not weight.count_nonzero())

    def state_dict(self) -> dict[str, Any]:
        """Step, and thresholds and frozen masks by the names that they belong to, on the CPU."""
        thresholds, masks = {}, {}
        for site in self.plan.sites:
            thresholds[site.name] = (
                whole(state_of(self.model, site, "threshold")[0]).detach().cpu().clone()
            )
            mask = state_of(self.model, site, "mask")[0]
            if mask.numel():
                masks[site.name] = mask.cpu().clone()
        return {"step": self.steps, "thresholds": thresholds, "masks": masks}

    @torch.inference_mode(False)
    @torch.no_grad()
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
        self._count(int(state["step"]))
        for site in self.plan.sites:
            for tensor in state_of(self.model, site, "threshold"):
                _fill(tensor, thresholds[site.name])
            mask = state.get("masks", {}).get(site.name, torch.empty(0, dtype=torch.bool))
            for module, parameter in places(self.model, site):
                present = module.get_buffer(state_name(parameter, "mask"))
                put_mask(module, state_name(parameter, "mask"), mask.to(present.device, copy=True))


def _fill(tensor: Tensor, value: Tensor) -> None:
    """Set a tensor, sharded or not, to a whole value."""
    if local(tensor) is tensor:
        tensor.copy_(value)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415

    assert isinstance(tensor, DTensor)
    value = value.to(tensor.device)
    tensor.copy_(distribute_tensor(value, tensor.device_mesh, tensor.placements))
