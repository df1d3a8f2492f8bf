"""Masks that move, in a converted model: setting them, and what a move needs of a training.

A method whose masks move (:mod:`st3fx.methods.moving`) asks for the gradients of pruned weights at
the steps before some moves. They come through the operators then, are averaged over processes like
all others, and are taken when an optimizer is about to step: torch's optimizers say so before every
step, however they are called. What the mask has pruned is set to zero there, so that the step is
that of the weights that are left. The same hook knows whose momentum begins anew where weights go
or come. Of an optimizer that is none of torch's, the gradients are those that
:meth:`Sparsifier.step` finds.

A step that a gradient scaler skips reaches no optimizer and no sparsifier: the next one has the
gradients. With accumulation they are those of all batches of the step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from st3fx.errors import OptimizerWarning, StateError, few
from st3fx.methods.moving import MaskedSite, Move, MovingMethod
from st3fx.modules.marks import state_name
from st3fx.sparsifier.bound import Bound
from st3fx.sparsifier.thresholds import Thresholds, diverged
from st3fx.sparsity.digest import Digest
from st3fx.sparsity.formula import INACTIVE
from st3fx.sparsity.masks import GROWING, MASKED
from st3fx.sparsity.shards import Spread, local, local_part, spread_of
from st3fx.sparsity.threshold.search import GlobalThreshold

_MOMENTUM = ("momentum_buffer", "exp_avg")
"""What torch's optimizers call a first moment."""


class Masks(Thresholds):
    """Thresholds, and of methods whose masks move the masks."""

    def __init__(self) -> None:
        super().__init__()
        self._gradients: dict[str, Tensor] = {}
        self._asked = False  # an optimizer has said that it steps, since the last step
        self._optimizers: Any = WeakIdKeyDictionary()  # parameter -> what optimizes it

    @property
    def moving(self) -> MovingMethod | None:
        """The method, if its masks move."""
        method = self._method()
        return method if isinstance(method, MovingMethod) else None

    # --- setting them

    def set(
        self,
        sparsity: float,
        bound: list[Bound],
        *,
        drawn: float | None = None,
        wait: bool = True,
        keep: bool = False,
    ) -> dict[str, Digest]:
        """As for thresholds; of masks that move those of the largest weights there are."""
        method = self.moving
        if method is None:
            return super().set(sparsity, bound, drawn=drawn, wait=wait, keep=keep)
        self._aside = None
        sites = self._masked_sites(bound)
        with diverged([item.site.name for item in bound]), torch.no_grad():
            masks = method.by_magnitude(sites, sparsity, self._own_finder())
        self._put_masks(bound, masks, sparsity)
        self._note_set(sparsity, bound)
        return {}

    def keep_zeros(self, *, pin: bool) -> float:
        """As for thresholds; masks that move begin here, from the zeros if there are some.

        No zero is pinned then: these masks bring any weight back.
        """
        method = self.moving
        if method is None:
            return super().keep_zeros(pin=pin)
        bound = self.bound_quietly()
        if any(weight.is_meta for site in bound for weight in site.sources()):
            self.pin = pin
            return self.floor
        floor = super().keep_zeros(pin=False)
        self.pin, self.floor = pin, 0.0
        if floor and method.start:
            self.floor = floor
            self.set(max(method.start, min(floor, method.sparsity)), bound)
        else:
            self._put_masks(bound, method.first(self._masked_sites(bound)), method.start)
            self._note_set(method.start, bound)
        self.open_gradients(bound)
        return floor

    def _note_set(self, sparsity: float, bound: list[Bound]) -> None:
        self.sparsity = sparsity
        self._over = frozenset(item.site.name for item in bound)
        self._note(bound, digest=False)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _put_masks(self, bound: list[Bound], masks: list[Tensor], sparsity: float) -> None:
        """Give sites their masks, in new tensors; thresholds say no more than that there is one."""
        for item, mask in zip(bound, masks, strict=True):
            for module, parameter in item.places:
                name = state_name(parameter, "mask")
                module.__dict__[name] = mask.to(module.__dict__[name].device)
            self.put(item, MASKED if mask.numel() else INACTIVE)
        pairs = zip(bound, masks, strict=True)
        empty = [item.site.name for item, mask in pairs if mask.numel() and not bool(mask.any())]
        self._warn_of_empty(empty, sparsity)

    def open_gradients(self, bound: list[Bound]) -> None:
        """Let the gradients of pruned weights through where the next step's move asks for them."""
        if self.moving is None:
            return
        if not any(item.tensors("mask")[0].numel() for item in bound):
            return
        opened = self._opens()
        for item in bound:
            if not item.tensors("mask")[0].numel():
                self._put_whole_mask(item)
            self.put(item, GROWING if opened else MASKED)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _put_whole_mask(self, item: Bound) -> None:
        """A mask of ones for a site that is dense while others are not.

        Compiled code is made for a shape of each mask: sites that lose their first weights at
        different moves would have it made anew at each of these.
        """
        for module, parameter in item.places:
            name = state_name(parameter, "mask")
            module.__dict__[name] = module.__dict__[name].new_ones(item.site.shape)

    def _opens(self) -> bool:
        """Whether the gradients of the step that is under way are asked for."""
        method, total = self.moving, self._total_steps()
        if method is None or total is None or self.held or self.frozen:
            return False
        return method.grows_at(self.steps + 1, total)

    # --- moving them

    def follow_schedule(self, bound: list[Bound]) -> None:
        """After a step: the masks that the schedule wants, moved or as they are.

        Raises:
            StateError: If a move needs gradients, and there are none; or weights are NaN.
        """
        method, total = self.moving, self._total_steps()
        taken, asked = self._gradients, self._asked
        self._gradients, self._asked = {}, False
        assert method is not None
        if self.held or total is None:
            return
        wanted = self.scheduled()
        assert wanted is not None
        if method.moves_at(self.steps, total):
            if not method.grows_at(self.steps, total):
                taken = {}
            elif not asked:
                taken = self._left_in(bound, method)
            self._move(bound, method, Move(self.steps, total, wanted, self._own_finder()), taken)
        elif wanted != self.sparsity:
            self.set(wanted, bound)
        self.open_gradients(bound)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _move(
        self, bound: list[Bound], method: MovingMethod, move: Move, gradients: dict[str, Tensor]
    ) -> None:
        if not _all_finite(gradients.values()):
            gradients = {}
            self.warn(
                f"gradients are not finite at step {move.step}, where masks of {method.name} move: "
                "no weight grows by them; does the loop call step() for steps that a gradient "
                "scaler skips? attach(optimizer) counts by itself",
                OptimizerWarning, "not finite",
            )  # fmt: skip
        elif gradients:
            self._warn_of_missing(bound, method, gradients)
        sites = self._masked_sites(bound, gradients)
        with diverged([item.site.name for item in bound]):
            masks = method.moved(sites, move)
        self._put_masks(bound, masks, move.sparsity)
        for item, site, mask in zip(bound, sites, masks, strict=True):
            self._begin_anew_where(item, site.mask, mask)
        if method.restarts_at(move.step, move.total_steps):
            for _, parameter in _own_parameters(bound):
                self._zero_state(parameter, None, _MOMENTUM)
        self._note_set(move.sparsity, bound)

    def _warn_of_missing(
        self, bound: list[Bound], method: MovingMethod, gradients: dict[str, Tensor]
    ) -> None:
        trained = [item.site.name for item in bound if item.weight().requires_grad]
        missing = [name for name in trained if name not in gradients]
        if missing:
            self.warn(
                f"{few(missing)}: no gradient at step {self.steps}, where masks of {method.name} "
                "move, so that none grow there; of several optimizers attach the one that steps "
                "last, or call step() after all of them",
                OptimizerWarning, "no gradient",
            )  # fmt: skip

    def _begin_anew_where(self, item: Bound, before: Tensor, after: Tensor) -> None:
        """Zero what is pruned and what has come, and what the optimizer keeps of them."""
        masks = [mask for mask in (before, after) if mask.numel()]
        if not masks:
            return
        stays = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        for _, parameter in _own_parameters([item]):
            own = local_part(stays, parameter)
            local(parameter.data).masked_fill_(~own, 0.0)
            torch.autograd.graph.increment_version(parameter)
            self._zero_state(parameter, own)

    def _zero_state(
        self, parameter: Tensor, stays: Tensor | None, names: tuple[str, ...] = ()
    ) -> None:
        """Zero what the optimizer keeps for each weight, but where it ``stays``."""
        reference = self._optimizers.get(parameter)
        optimizer = None if reference is None else reference()
        for name, value in ({} if optimizer is None else optimizer.state[parameter]).items():
            fits = isinstance(value, Tensor) and value.shape == parameter.shape
            if not fits or not value.is_floating_point() or (names and name not in names):
                continue
            own = local(value)
            own.zero_() if stays is None else own.masked_fill_(~stays, 0.0)

    def _own_finder(self) -> GlobalThreshold:
        return self._finders.setdefault("", GlobalThreshold())

    def _masked_sites(
        self, bound: list[Bound], gradients: dict[str, Tensor] | None = None
    ) -> list[MaskedSite]:
        found, sites = gradients or {}, []
        for item in bound:
            mask = item.tensors("mask")[0]
            left = mask.new_empty(0) if bool(mask.all()) else mask
            sites.append(MaskedSite(item.site, item.weight(), left, found.get(item.site.name)))
        return sites

    # --- gradients

    def watch(self) -> None:
        """Hear of the steps of torch's optimizers, if masks move, for as long as this is there."""
        if self.moving is not None:
            _RUNS.add(self)
            if not _HOOKS:
                _HOOKS.append(register_optimizer_step_pre_hook(_before_step))

    def before_optimizer(self, optimizer: Any) -> Callable[[], None] | None:
        """What to do once an optimizer's gradients are there; ``None`` if it is not asked for."""
        if self.root is None or self.moving is None:
            return None
        opens = self._opens()
        groups = optimizer.param_groups
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        pairs = [
            pair for pair in _own_parameters(self.bound_quietly(), tied=True)
            if id(pair[1]) in trained
        ]  # fmt: skip
        for _, parameter in pairs:
            self._optimizers[parameter] = weakref.ref(optimizer)
        if not pairs or not opens:
            return None
        return lambda: self._take(pairs)

    @torch.no_grad()
    def _take(self, pairs: list[tuple[Bound, nn.Parameter]]) -> None:
        """Keep all gradients, and leave the optimizer none of pruned weights.

        Those of a site that is dense so far count, too: the move may prune it first.
        """
        self._asked = True
        for item, parameter in pairs:
            mask, gradient = item.tensors("mask")[0], parameter.grad
            self._gradients.pop(item.site.name, None)
            if gradient is None or gradient.is_sparse:
                continue
            self._gradients[item.site.name] = gradient.detach().clone()
            # The gradient of a lookup is that of a weight that is left, wherever it is.
            if mask.numel() and not item.site.tied:
                local(gradient).masked_fill_(~local_part(mask, parameter), 0.0)

    def _left_in(self, bound: list[Bound], method: MovingMethod) -> dict[str, Tensor]:
        """The gradients that the weights have: no optimizer of torch's has said that it steps.

        Raises:
            StateError: If there are none.
        """
        found = {
            item.site.name: parameter.grad
            for item, parameter in _own_parameters(bound, tied=True)
            if parameter.grad is not None and not parameter.grad.is_sparse
        }
        if found or not any(item.tensors("mask")[0].numel() for item in bound):
            return found
        raise StateError(
            f"{method.name} moves its masks after step {self.steps} by the gradients of pruned "
            "weights, and there are none: call step() before zero_grad() where the optimizer is "
            "none of torch's"
        )


def _all_finite(gradients: Iterable[Tensor]) -> bool:
    """Whether gradients are numbers; the same answer in all processes that have parts of them."""
    found: dict[Spread, bool] = {}
    for own in gradients:
        spread = spread_of(own)
        found[spread] = found.get(spread, False) or not bool(local(own).isfinite().all())
    # Every process asks for each: none may go on to gather what another leaves out.
    lost = [spread.reduce([int(own)], dist.ReduceOp.MAX)[0] for spread, own in found.items()]
    return not any(lost)


def _own_parameters(
    bound: list[Bound], *, tied: bool = False
) -> Iterator[tuple[Bound, nn.Parameter]]:
    """Sites whose weight is a parameter, which nothing but their products reads.

    Args:
        bound: Sites.
        tied: Those, too, that are an embedding's table.
    """
    for item in bound:
        if item.compute is None and (tied or not item.site.tied):
            parameter = item.weight()
            if isinstance(parameter, nn.Parameter | DTensor):
                yield item, parameter  # type: ignore[misc]


_RUNS: weakref.WeakSet[Masks] = weakref.WeakSet()
_HOOKS: list[Any] = []
"""The hook on all optimizers; there is none until a model is driven whose masks move."""


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    """Gradients are there as an optimizer's step begins, or once its closure has run."""
    takers = [own for run in list(_RUNS) if (own := run.before_optimizer(optimizer)) is not None]
    if not takers:
        return None

    def take(result: Any = None) -> Any:
        for own in takers:
            own()
        return result

    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        take()
        return None
    if "closure" in kwargs:
        return args, {**kwargs, "closure": lambda: take(closure())}
    return (args[0], lambda: take(closure()), *args[2:]), kwargs
