"""The sparsifier: drives the thresholds of a converted model with the optimizer's steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from st3fx.errors import (
    HalfPrecisionWarning,
    MethodError,
    OptimizerWarning,
    PlanError,
    StateError,
)
from st3fx.methods.base import DrawnMethod, LearnedMethod, Method, TargetMethod, check_sparsity
from st3fx.methods.moving import MovingMethod
from st3fx.modules.marks import SITES, change_conversion, conversion_of, is_root, state_name
from st3fx.modules.saving import move_state
from st3fx.modules.unloaded import complete
from st3fx.plan.sites import SparsityPlan
from st3fx.sparsifier.attachment import Attachment, Stillness
from st3fx.sparsifier.bound import Bound, drop, marks
from st3fx.sparsifier.run import SLACK, Run, run_of
from st3fx.sparsity import cache, ties
from st3fx.sparsity.digest import Digest
from st3fx.sparsity.drawing import decided
from st3fx.sparsity.shards import Spread, fill, local, spread_of, whole
from st3fx.whose import callers_level


class Sparsifier:
    """Drives the sparsity of a converted model.

    Weights are looked up at each update, never kept, so that the model may be moved, wrapped or
    loaded at any time. All state is in the model itself: thresholds, masks and the step.
    """

    def __init__(self, model: nn.Module) -> None:
        """Drive ``model``.

        Raises:
            StateError: If the model was not converted.
        """
        conversion_of(model)
        self.model = model
        self._warned: set[str] = set()
        self._stillness = Stillness()
        self.run.watch()

    def __getstate__(self) -> dict[str, Any]:
        """With the optimizer that is attached: torch copies an optimizer without its hooks."""
        attachment = self._attachment()
        ours = attachment is not None and attachment.after == self._after_optimizer
        optimizer = attachment.optimizer if attachment is not None and ours else None
        return {"model": self.model, "warned": self._warned, "optimizer": optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is attached to the copy of the optimizer."""
        self.model, self._warned = state["model"], state["warned"]
        self._stillness = Stillness()
        if is_root(self.model):
            self.run.watch()
            if state["optimizer"] is not None:
                self._hook(state["optimizer"])

    def _attachment(self) -> Attachment | None:
        """That of the model: this sparsifier's or another's, as long as its optimizer is there."""
        attachment = self.run.attachment if is_root(self.model) else None
        return None if attachment is None or attachment.optimizer is None else attachment

    def _hook(self, optimizer: Any) -> None:
        weights = {id(weight) for item in self.run.bound_quietly() for weight in item.sources()}
        self.run.attachment = Attachment(optimizer, weights, self._after_optimizer)

    @property
    def run(self) -> Run:
        """Where the training stands."""
        return run_of(self.model)

    @property
    def plan(self) -> SparsityPlan:
        """The plan of the conversion, without what has been dropped since."""
        return conversion_of(self.model).plan

    @property
    def method(self) -> Method:
        """The method with its settings."""
        return conversion_of(self.model).method

    @property
    def target(self) -> float | None:
        """Final sparsity over the sites; ``None`` where thresholds are learned."""
        return self.method.target

    @property
    def reached(self) -> bool:
        """Whether the target is reached for good: what was evaluated before cannot be the best.

        A sparse phase with a dense one to come does not count. True where nothing is to be reached:
        thresholds are learned, the sparsity was set by hand, or masks are frozen.
        """
        run, method = self.run, self.method
        if run.sparsity is None or run.held or run.frozen or not isinstance(method, TargetMethod):
            return True
        total = self.total_steps
        stays = total is None or method.is_last(run.steps, total)
        return stays and run.sparsity >= method.target - SLACK

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole training; may be set when they are known.

        Raises:
            PlanError: If set to less than 1.
        """
        return conversion_of(self.model).total_steps

    @total_steps.setter
    def total_steps(self, steps: int) -> None:
        if steps < 1:
            raise PlanError(f"total_steps={steps}: give the number of optimizer steps, 1 or more")
        change_conversion(self.model, total_steps=steps)
        self.run.open_gradients(self.run.bound_quietly())

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The processes that share the threshold, as stages of one pipeline; may be set.

        With it the schedule's sparsity is that of all stages together. What this sparsifier says of
        sparsity is its own stage's. :meth:`step`, :meth:`set_sparsity`, :meth:`refresh` and
        ``fold`` are called in all stages; a forward looks at no threshold anew, so that after
        weights were exchanged by hand :meth:`refresh` has to be called.

        Raises:
            MethodError: If the method decides by more than one threshold.
        """
        return self.run.across.group

    @group.setter
    def group(self, group: dist.ProcessGroup | None) -> None:
        self.run.share(group)

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self.run.steps

    @property
    def level(self) -> Tensor | None:
        """The last global threshold ``T``: 0-dimensional; ``None`` while there is none."""
        return self.run.level

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` was called."""
        return self.run.frozen

    @property
    def held(self) -> float | None:
        """The sparsity that :meth:`set_sparsity` has set and steps keep; ``None`` if none."""
        return self.run.sparsity if self.run.held else None

    def attach(self, optimizer: Any, total_steps: int | None = None) -> None:
        """Step by itself after every step that ``optimizer`` really makes.

        The recommended way: it counts updates, not calls. A step that a gradient scaler skips does
        not count, nor do the batches of gradient accumulation; wrappers of Accelerate and Lightning
        are looked through. Of several optimizers attach the one whose steps the schedule counts.

        Args:
            optimizer: A ``torch.optim.Optimizer``, or a wrapper with one in ``optimizer``.
            total_steps: Optimizer steps of the whole training, where ``convert`` was not told.

        Raises:
            PlanError: If there is less than one step.
            StateError: If it trains none of the sites' weights, or one is attached already.
        """
        inner = optimizer
        while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
            inner = inner.optimizer
        if not hasattr(inner, "register_step_post_hook"):
            raise StateError(
                f"{type(optimizer).__name__} has no step hooks: call step() after each update"
            )
        if self._attachment() is not None:
            raise StateError("an optimizer is attached already: detach() it first")
        trained = {id(p) for group in inner.param_groups for p in group["params"]}
        if not any(id(p) in trained for site in self._bound() for p in site.sources()):
            raise StateError(
                f"{type(inner).__name__} has none of the converted model's weights: make it from "
                "the parameters() of the model that convert gave"
            )
        if total_steps is not None:
            self.total_steps = total_steps
        self._hook(inner)

    def detach(self) -> None:
        """Let go of the optimizer that was attached, by whichever sparsifier of the model."""
        if self.run.attachment is not None:
            self.run.attachment.remove()
            self.run.attachment = None

    def _after_optimizer(self, optimizer: Any, *_: Any) -> None:
        skipped = getattr(optimizer, "found_inf", None)  # a fused optimizer skips by itself
        if isinstance(skipped, Tensor) and bool(skipped):
            return
        self._step()

    def step(self) -> None:
        """Count one optimizer step and set the thresholds for the sparsity that follows from it.

        Call it after every step that the optimizer really made: once with gradient accumulation,
        not at all where a gradient scaler skipped the step. :meth:`attach` does that by itself.

        Raises:
            StateError: If the method needs the number of steps and ``convert`` was not given it,
                weights are NaN, a site was replaced, or an optimizer is attached.
        """
        if self._attachment() is not None:
            raise StateError("an optimizer is attached, which counts its steps: leave step() out")
        self._step()

    def _step(self) -> None:
        complete(self.model)
        conversion, run = conversion_of(self.model), self.run
        method = conversion.method
        follows = isinstance(method, TargetMethod) and not run.frozen and not run.held
        total = self._total_steps() if follows else 0
        run.take_over()
        run.restore()
        bound = self._bound()
        self._warn_of_half(bound)
        self._warn_of_optimizer(bound, trained=run.trained)
        run.steps += 1
        known: dict[str, Digest] = {}
        if isinstance(method, LearnedMethod):
            self._after_step(method, bound)
        elif isinstance(method, MovingMethod):
            if not run.frozen:
                run.follow_schedule(bound)
        elif isinstance(method, TargetMethod) and not run.frozen:
            # Masks are drawn at each step.
            every = 1 if isinstance(method, DrawnMethod) else conversion.update_every
            if run.steps % every == 0 or run.steps == total:
                wanted, drawn, last = self._wanted(), run.drawn(), run.steps == total
                known = run.set(wanted, bound, drawn=drawn, wait=last, keep=not run.held)
            if isinstance(method, DrawnMethod) and method.is_fixed(run.steps, total or 0):
                self.freeze()
                return
        self._refresh_effective(bound, known)

    def _wanted(self) -> float:
        """The sparsity for the present step."""
        self._total_steps()
        return self.scheduled or 0.0

    @property
    def scheduled(self) -> float | None:
        """The sparsity for the present step; ``None`` without a schedule, or its length.

        Where each step draws its own (``CubicSchedule.draw``), it is what the model is evaluated
        with; training has :attr:`drawn`.
        """
        return self.run.scheduled()

    @property
    def drawn(self) -> float | None:
        """The sparsity that was drawn for the next training step; ``None`` if none is."""
        return self.run.drawn()

    def _total_steps(self) -> int | None:
        total = conversion_of(self.model).total_steps
        if total is None and not self.run.held:
            raise StateError(
                "the schedule needs the number of optimizer steps: "
                "give total_steps= to convert, or use set_sparsity()"
            )
        return total

    def _bound(self) -> list[Bound]:
        bound = self.run.bound()
        for item in bound:  # FSDP2 moves parameters by itself
            for module, parameter in item.places:
                move_state(module, parameter, item.sparse)
        return bound

    def set_sparsity(self, sparsity: float | None) -> None:
        """Set all thresholds for ``sparsity`` over the present weights, and hold it.

        Later steps keep it, exactly, whatever the weights become.

        Args:
            sparsity: 0 makes thresholds inactive. ``None`` goes back to the schedule at the next
                step.

        Raises:
            MethodError: For a sparsity outside [0, 1), or above what N of M can have.
            StateError: If thresholds are learned or masks are frozen, the method keeps more than
                that pruned, weights are NaN or on the meta device, or a site was replaced.
        """
        run = self.run
        if sparsity is None:
            run.held = False
            run.open_gradients(self._bound())
            return
        check_sparsity(sparsity)
        complete(self.model)
        check_settable(run, self.method, sparsity)
        run.take_over()
        bound = self._bound()
        check_kept(run, self.method, sparsity, bound)
        self._warn_of_optimizer(bound, trained=False)
        run.set(sparsity, bound)
        run.held = True
        run.open_gradients(bound)
        self._refresh_effective(bound)

    def refresh(self) -> None:
        """Set the thresholds again, for the present step and the present weights.

        For weights that no optimizer step made: another checkpoint's, or averages in a copy of the
        model, which then have the sparsity that the model they follow has now. Evaluation in eval
        mode, ``fold`` and pickling do it by themselves. With learned thresholds, which are weights
        themselves, nothing is to be done.

        Raises:
            StateError: As :meth:`step`.
        """
        run, bound = self.run, self._bound()
        if isinstance(self.method, TargetMethod):
            if run.follows:
                run.stale = True
                run.settle(thorough=False)
            elif not run.frozen and not isinstance(self.method, MovingMethod):
                run.set(self._wanted(), bound, drawn=run.drawn())
        self._refresh_effective(bound)

    def drop(self, name: str) -> None:
        """Go on without a site: its weight is dense from here on, as it stands.

        Args:
            name: Full name in the plan, of a site that was replaced, or of any other.

        Raises:
            StateError: If the plan has no such site.
        """
        site = next((site for site in self.plan.sites if site.name == name), None)
        if site is None:
            raise StateError(f"{name!r} is no site of this model: see sparsifier.plan.sites")
        for module, parameter, sparse in list(marks(self.model)):
            if sparse.run is self.run and sparse.site.name == name:
                del module.__dict__[SITES][parameter]
        drop(self.model, name, "dropped by the user")

    def _warn_of_half(self, bound: list[Bound]) -> None:
        """Once: thresholds are fp32 whatever the weights are, steps are as fine as the weights."""
        if "half precision" in self._warned:
            return
        half = {item.owner._parameters.get(item.parameter) for item in bound}
        names = {str(p.dtype) for p in half if p is not None and p.dtype.itemsize < 4}
        if names:
            self._warned.add("half precision")
            message = (
                f"weights of {', '.join(sorted(names))} are trained: steps smaller than their "
                "precision are lost; keep the model in float32 and compute under torch.autocast"
            )
            warnings.warn(message, HalfPrecisionWarning, stacklevel=callers_level())

    def _warn_of_optimizer(self, bound: list[Bound], *, trained: bool) -> None:
        """Once: the model is trained, and no weight moves. What is attached was looked at then."""
        self.run.trained = False
        if self._attachment() is not None:
            return
        weights = [weight for site in bound for weight in site.sources() if weight.requires_grad]
        if weights and self._stillness.is_certain(weights, trained=trained):
            warnings.warn(
                "no weight moves, though the model is trained: was the optimizer made before "
                "convert? Make it from the converted model's parameters()",
                OptimizerWarning,
                stacklevel=callers_level(),
            )

    @torch.no_grad()
    def _after_step(self, method: LearnedMethod, bound: list[Bound]) -> None:
        for item in bound:
            threshold: Any = item.tensors("threshold")[0]
            method.after_step(item.weight(), threshold, item.site)

    @torch.no_grad()
    def _refresh_effective(
        self, bound: list[Bound], known: Mapping[str, Digest] | None = None
    ) -> None:
        """Compute the effective weights.

        Args:
            bound: The sites.
            known: Digests of weights as they are, by the names of their sites.
        """
        own = [item for item in bound if item.compute is None]
        if conversion_of(self.model).recompute_weights:
            cache.forget(item.weight() for item in own)
            return
        digests = {
            id(item.weight()): known[item.site.name]
            for item in own if known and item.site.name in known
        }  # fmt: skip
        cache.refresh([item.inputs() for item in own], digests)

    @torch.inference_mode(False)  # masks made there could not be saved for a backward later on
    @torch.no_grad()
    def freeze(self) -> None:
        """Fix masks and thresholds from here on.

        What is zero now stays zero, whatever momentum, weight decay or a loaded checkpoint make of
        the latent weights, and gets no gradient. Scheduled thresholds keep their values. Copies
        that follow the model are frozen with it.

        Raises:
            StateError: If a site was replaced.
        """
        self.run.settle(thorough=self.run.follows)
        if self.run.drawn() is not None:  # the masks are the schedule's, not those of a step
            self.run.set(self.run.sparsity or 0.0, self._bound())
        self.run.take_over()
        weights, bound = self.effective_weights(), self._bound()
        moves = isinstance(self.method, MovingMethod)
        for item in bound:
            for module, parameter in () if moves else item.places:
                module.__dict__[state_name(parameter, "mask")] = weights[item.site.name] != 0
        self.run.freeze()
        self._refresh_effective(bound)

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
        """The thresholds, or probabilities, that the optimizer trains; others have none."""
        tensors = [t for item in self._bound() for t in (item.tensors("threshold")[0],
                                                          *item.learned())]  # fmt: skip
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    @property
    def thresholds(self) -> dict[str, float]:
        """Layer threshold by full name, negative while inactive; the mean of several learned."""
        method = self.method
        values = {}
        for item in self._fitting():
            threshold = whole(item.tensors("threshold")[0]).detach()
            if isinstance(method, LearnedMethod):
                values[item.site.name] = float(method.level(threshold).mean())
            else:
                values[item.site.name] = float(ties.level(decided(threshold)))
        return values

    def _fitting(self) -> list[Bound]:
        """The sites, with thresholds that fit their weights as a forward would find them."""
        self.run.prepare(self.model.training)
        return self._bound()

    @torch.no_grad()
    def effective_weights(self) -> dict[str, Tensor]:
        """Effective weight by full name, without gradient; gathered where weights are sharded."""
        return {item.site.name: item.static() for item in self._fitting()}

    @property
    def sparsity(self) -> float:
        """Share of zeros among the effective weights of all sites, or of what masks prune.

        In training mode that of the next step, which may be drawn; in eval mode the schedule's.
        """
        counts = [*self.pruned().values()]
        return sum(zeros for zeros, _ in counts) / max(1, sum(numel for _, numel in counts))

    @torch.no_grad()
    def pruned(self) -> dict[str, tuple[int, int]]:
        """By full name: how many of a site's weights are pruned, and how many there are.

        They are the zeros of its effective weight. Where masks move they are what the mask has
        pruned: a weight that has just come back is 0 as well, and is trained.
        """
        counts, moves = {}, isinstance(self.method, MovingMethod)
        for item in self._fitting():
            kept = item.tensors("mask")[0] if moves else item.static()
            gone = kept.numel() - int(kept.count_nonzero())
            counts[item.site.name] = (gone, item.site.numel)
        return counts

    def empty_layers(self) -> tuple[str, ...]:
        """Sites that have lost all of their weights."""
        weights = self.effective_weights().items()
        return tuple(name for name, weight in weights if not weight.count_nonzero())

    def state_dict(self) -> dict[str, Any]:
        """Step, sparsity, and thresholds and frozen masks by their names, on the CPU."""
        thresholds, masks = {}, {}
        for item in self._bound():
            name = item.site.name
            threshold = self.run.of_training(name, item.tensors("threshold")[0])
            thresholds[name] = whole(threshold).detach().cpu().clone()
            mask = item.tensors("mask")[0]
            if mask.numel():
                masks[name] = mask.cpu().clone()
        run = self.run
        return {
            "step": run.steps, "sparsity": run.sparsity, "held": run.held, "frozen": run.frozen,
            "floor": run.floor, "thresholds": thresholds, "masks": masks,
        }  # fmt: skip

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            StateError: If the state is of a model with other sites.
        """
        bound = self._bound()
        names = {item.site.name for item in bound}
        thresholds = state.get("thresholds", {})
        if "step" not in state:
            raise StateError("the state has no step: give what Sparsifier.state_dict() gave")
        if set(thresholds) != names:
            odd = sorted(names ^ set(thresholds))
            raise StateError(
                f"the state is of another model: {len(odd)} sites differ, for example {odd[0]}"
            )
        masks = state.get("masks", {})
        if state.get("frozen") and not masks:
            raise StateError(
                "the state is frozen and has no masks: a distributed checkpoint reads what there "
                "is already; save and load get_model_state_dict(model), which has all of it"
            )
        for item in bound:
            if isinstance(self.method, TargetMethod):
                self.run.put(item, thresholds[item.site.name])
            else:
                for tensor in item.tensors("threshold"):
                    fill(tensor, thresholds[item.site.name])
            mask = masks.get(item.site.name, torch.empty(0, dtype=torch.bool))
            for module, parameter in item.places:
                name = state_name(parameter, "mask")
                module.__dict__[name] = mask.to(module.__dict__[name].device, copy=True)
        self.run.take_state(
            int(state["step"]), state.get("sparsity"),
            held=state.get("held", False), frozen=state.get("frozen", bool(masks)),
            floor=state.get("floor", 0.0),
        )  # fmt: skip


def check_settable(run: Run, method: Method, sparsity: float) -> None:
    """Fail where no sparsity can be set by hand, or not that one.

    Raises:
        MethodError: For a sparsity above what N of M can have.
        StateError: If thresholds are learned, or masks are frozen.
    """
    if not isinstance(method, TargetMethod):
        raise StateError(f"{method.name} learns its thresholds: no sparsity can be set")
    granularity = method.granularity
    if sparsity > granularity.most:
        raise MethodError(
            f"sparsity {sparsity} is more than {granularity.text} has: give "
            f"{granularity.most:.4g} or less"
        )
    if run.frozen:
        raise StateError("the masks are frozen: the sparsity stays as it is")


def check_kept(run: Run, method: Method, sparsity: float, bound: list[Bound]) -> None:
    """Fail for less than what the method keeps pruned.

    Raises:
        StateError: Then.
    """
    kept, one = run.kept(bound) if method.keeps else (0.0, 0.0)
    if kept > sparsity + one + SLACK:
        raise StateError(
            f"{method.name} keeps what it has pruned, {kept:.4g} by now: give that or more"
        )
