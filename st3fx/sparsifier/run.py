"""Where the training of a converted model stands, and how its thresholds follow from that.

All modules of a converted model share one :class:`Run`: the steps so far, the present sparsity,
whether masks are frozen. The thresholds in the modules follow from it: they are the exact quantile
of the weights at the last step.

A deep copy of a converted model gets a run that follows the original's. When its weights have been
changed since (an average of weights, whoever keeps it), its thresholds are set anew, for the
sparsity that the original has now, before it is used or folded. A copy whose weights are as they
were copied keeps its thresholds. A copy that is driven by a sparsifier of its own stops following.
A copy of a part alone, or one that has lost sites, follows as well: its sites together have the
share of zeros that the same sites of the original have.

A model's own weights may be exchanged, too, between two steps (averages swapped in for an
evaluation; an optimizer that evaluates other weights than it trains): in eval mode the thresholds
are those of the weights that are there, and training finds its own again. So it is where each
training step draws a sparsity of its own: in eval mode, in copies and when folded, the model has
that of the schedule.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _disable_current_modes

from st3fx.errors import StateError, TargetWarning, TraceWarning
from st3fx.methods.base import TargetMethod
from st3fx.methods.moving import MovingMethod
from st3fx.modules.attributes import is_transformed
from st3fx.modules.compiled import key_of
from st3fx.modules.marks import LEVEL, STEP, conversion_of, found_conversion, state_name
from st3fx.sparsifier.attachment import Attachment
from st3fx.sparsifier.bound import Bound, marks, part_sites
from st3fx.sparsifier.masks import Masks
from st3fx.sparsifier.thresholds import digests_of, is_plain, stamp
from st3fx.sparsity import ties
from st3fx.sparsity.drawing import decided, is_drawn
from st3fx.sparsity.formula import INACTIVE

SLACK = 1e-6
"""How far below its target a sparsity may be without a word."""


_NEVER_PICKLED = ("_followers", "_part", "key", "_gradients", "_asked", "_optimizers", "across")
"""Weak sets, what is of one step, and what is of one process, or of several."""


class Run(Masks):
    """The state of one conversion, shared by all modules of the model.

    Attributes:
        suspect: Whether changes that leave no trace are to be looked for at the next evaluation.
        key: Of this process: a compiler knows numbers, and no runs.
        trained: Whether a forward has recorded gradients since the last step.
        attachment: To the optimizer whose steps are counted, if one is attached.
        loading: Whether a state dict is being loaded that says where a training stood.
        absent: Entries that it lacks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.suspect = False
        self.key = key_of(self)
        self.trained = False
        self.attachment: Attachment | None = None
        self.loading = False
        self.absent: set[str] = set()
        self._leader: Run | None = None
        self._followers: weakref.WeakSet[Run] = weakref.WeakSet()
        self._whole = False  # the root is copied, too
        self._switching = False
        self._seen = 0  # the leader's steps when changes were last looked for
        self._given = False  # the user's own weights are loaded, to start from
        self._renewed = True
        self._old_file = False

    # --- whose run it is

    def bind(self, root: nn.Module) -> None:
        """The model that this run is of, as it is now."""
        self._root, stale = weakref.ref(root), self.stale
        self._part.clear()
        bound = self.bound_quietly()
        self._over = self._over or frozenset(site.site.name for site in bound)
        self._note(bound, digest=self._leader is not None)
        self.stale = stale

    def adopt(self, module: nn.Module) -> None:
        """A module with sites has been copied, as it is now; perhaps without the root."""
        if self._whole or self.root is not None:
            return
        traceable = self._traceable or not self._part
        self._part.add(module)
        if self._leader is not None:
            known = self._stamps, self._digests
            self._note(part_sites([module], self), digest=True, stale=self.stale)
            self._stamps, self._digests = known[0] | self._stamps, known[1] | self._digests
            self._traceable = self._traceable and traceable

    def take_over(self) -> None:
        """A sparsifier drives this model itself: it follows no other."""
        self._leader = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        """A run that follows this one."""
        twin = self._copied()
        memo[id(self)] = twin
        twin._leader = self if self._leader is None else self._leader
        twin._leader._followers.add(twin)
        twin._seen = twin._leader.steps
        twin._whole = self.root is not None and id(self.root) in memo
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Pickled with what it follows by now, and without it."""
        state = self._copied().__dict__
        return {name: value for name, value in state.items() if name not in _NEVER_PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With what a file of an older version lacks."""
        Run.__init__(self)
        self.__dict__.update(state)

    def before_copy(self) -> None:
        """A copy, or a file, knows no other model whose share of zeros some sites should have."""
        leader = self._leader
        due = leader is not None and (self.stale or leader.steps != self._seen)
        if due and not self._fits(self.bound_quietly()):
            self.settle(thorough=True)

    def _copied(self) -> Run:
        twin = Run.__new__(Run)
        Run.__init__(twin)
        moved = self._moved(thorough=bool(self._digests))
        steps = self.steps if self._leader is None or not moved else self._leader.steps
        stale = self.stale or moved
        twin.__dict__.update(
            steps=steps, sparsity=self._wanted(moved), held=self.held, frozen=self.frozen,
            floor=self.floor, pin=self.pin, stale=stale, level=self.level, _over=self._over,
            _sampling=self._sampling, across=self.across, is_stage=self.is_stage,
        )  # fmt: skip
        return twin

    def _wanted(self, moved: bool) -> float | None:
        """The sparsity that the present weights should have.

        Args:
            moved: Whether they have changed since the thresholds were set. Then those of a copy are
                an average, and have what the model that it follows has now.
        """
        return self.sparsity if self._leader is None or not moved else self._leader.sparsity

    # --- thresholds

    def prepare(
        self, training: bool, name: str = "", weight: Tensor | None = None, *, whole: bool = False
    ) -> None:
        """Before a forward or a read: thresholds that fit the weights.

        Args:
            training: In training they are those of the last step; in eval mode, and in a copy that
                nothing drives, those of the weights that are there.
            name: The site that is read; all of them if empty.
            weight: Its parameter.
            whole: It is the forward of the whole model, which looks at values, too.

        Raises:
            StateError: If thresholds must be set and a tracer hides the weights.
        """
        if is_transformed():
            if self._is_due(training):
                self._settle_outside()
            return
        leader = self._leader
        if leader is None and (training or self._trains()):
            if self._aside is not None:
                self.restore()
            self.trained = self.trained or torch.is_grad_enabled()
            return
        if not self.sparsity and (leader is None or not leader.sparsity):
            return
        if leader is None and name and self._sharded:
            return  # one process may read alone
        thorough = self.suspect or (leader is not None and leader.steps != self._seen)
        if whole and self._here and self._digests:
            thorough = True
        known = self._stamps.get(name)
        if weight is not None and known == [stamp(weight)] and not thorough and not self.stale:
            return
        self.settle(thorough=thorough, training=training)

    def _trains(self) -> bool:
        """Whether the model trains at a sparsity that was drawn: its parts in eval mode do, too."""
        root = self.root
        return root is not None and root.training and self.drawn() is not None

    def before_compiling(self) -> None:
        """A copy that follows is compiled: thresholds that fit, and a word on later ones."""
        leader = self._leader
        if self._is_due(training=False):
            self._settle_outside()
        if leader is not None and leader.root is not None and not self.frozen:
            self.warn(
                "a copy of a converted model is compiled: it has thresholds of the weights that it "
                "has now, and new ones at each call of its eval(), not by itself",
                TraceWarning,
            )

    def switched(self, training: bool) -> None:
        """The model is switched to training, or to eval mode."""
        if training:
            self.restore()
            return
        self.suspect = True
        if self._is_due(training) and not self._switching and all(map(is_plain, self._sources())):
            # Compiled code cannot look by itself. What is wrong is said when the model is used.
            self._switching = True
            try:
                with contextlib.suppress(StateError):
                    self.settle(thorough=True)
            finally:
                self._switching, self.suspect = False, True

    def _sources(self) -> list[Tensor]:
        return [weight for item in self.bound_quietly() for weight in item.watched()]

    def _is_due(self, training: bool) -> bool:
        """Whether something is known that may make the thresholds misfit."""
        leader = self._leader
        if leader is None:
            return bool(self.sparsity) and not training and (self.suspect or self.stale)
        due = self.stale or self.suspect or leader.steps != self._seen
        return due and bool(self.sparsity or leader.sparsity)

    def _settle_outside(self) -> None:
        """As :meth:`settle`, out of a call that is transformed or traced, if the weights are real.

        Raises:
            StateError: If they are not, and the thresholds of a copy are older than the training.
        """
        weights = self._sources()
        if all(is_plain(weight) and not is_functorch_wrapped_tensor(weight) for weight in weights):
            state = torch._C._get_tracing_state()
            torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
            try:
                with torch._C._DisableFuncTorch(), _disable_current_modes(), torch.no_grad():
                    self.settle(thorough=True)
            finally:
                torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
        elif self._leader is not None and self._leader.steps != self._seen:
            raise StateError(
                "a copy of a converted model is traced, and its thresholds are older than its "
                "weights may be: call its eval(), or fold it, before"
            )

    def settle(self, *, thorough: bool, training: bool = False) -> None:
        """Set the thresholds anew if the weights have changed since they were set.

        Args:
            thorough: Look at the values of weights, too.
            training: Whether masks may be drawn, where nothing has changed.
        """
        self.suspect = False
        leader = self._leader
        if leader is not None:
            self._seen = leader.steps
        moved = self._moved(thorough=thorough)
        bound = [] if self.is_stage else self.bound_quietly()  # a stage's forward waits for another
        if not bound or not (moved or self.stale):
            if self._sampling and not training:
                self._put_aside(bound)
                self._decide(bound)
            return
        # A training of a bundle may have other targets than its conversion.
        method = bound[0].sparse.method if self.root is None else self._method()
        moves = isinstance(method, MovingMethod)
        if leader is not None and (leader.frozen or moves) and leader.root is not None:
            self._take_masks(leader)
        elif isinstance(method, TargetMethod) and not (self.frozen or moves):
            wanted = self._wanted(moved)
            if wanted is None:
                return
            if leader is not None and moved:
                self._catch_up(leader, method)
            if self._fits(bound):
                self._put_aside(bound)
                self.sparsity = wanted
                self._set(method, wanted, bound)
            elif leader is not None:
                self.sparsity = wanted
                self._set_as_in(leader, method, bound)
        self._note(bound, digest=True)

    def _put_aside(self, bound: list[Bound]) -> None:
        """Keep the thresholds of the last step of a model that is trained."""
        if self._leader is None and self._aside is None:
            self._aside = {item.site.name: item.tensors("threshold")[0] for item in bound}

    def before_fold(self) -> None:
        """Exact thresholds for the weights that are folded, and a word if the target is missed."""
        self.warn_of_drift(folded=True)
        self.settle(thorough=True)
        self.fit(self.bound_quietly())

    def fit(self, bound: Sequence[Bound]) -> None:
        """Exact thresholds for some weights that are folded, and a word if the target is missed.

        Args:
            bound: The sites, which may have their weights elsewhere than in the model.
        """
        bound = list(bound)
        # A training of a bundle may have another target than its conversion.
        method = bound[0].sparse.method if bound else None
        if self.root is not None:
            method = self._method()
        if not isinstance(method, TargetMethod):
            return
        moves = isinstance(method, MovingMethod)
        if not (self.frozen or moves) and self.sparsity and self._fits(bound):
            self._set(method, self.sparsity, bound)
        reached = self.sparsity
        if not self.held and reached is not None and reached < method.target - SLACK:
            total = self._total_steps()
            of = "" if total is None else f" of {total:,}"
            self.warn(
                f"folded at sparsity {reached:.4g} of the target {method.target:.4g}: its schedule "
                f"has made {self.steps:,}{of} steps; train to the end, take a later checkpoint, or "
                f"set_sparsity({method.target:g})",
                TargetWarning,
            )

    def _fits(self, bound: list[Bound]) -> bool:
        """Whether the thresholds were set over these sites, here or in the model that is followed.

        Where some were replaced or dropped since, the others keep theirs.
        """
        names, leader = {site.site.name for site in bound}, self._leader
        return names == self._over or (leader is not None and names == leader._over)

    @torch.no_grad()
    def _set_as_in(self, leader: Run, method: TargetMethod, bound: list[Bound]) -> None:
        """Thresholds for some of the leader's sites alone, which there have a share of their own.

        With the leader's weights they are the leader's. Where it has gone, its last threshold.
        """
        theirs = {site.site.name: site for site in leader.bound_quietly()}
        pairs = [(site, theirs[site.site.name]) for site in bound if site.site.name in theirs]
        if not pairs:
            for site in bound:
                level = leader.level
                dtype = site.sources()[0].dtype
                own = None if level is None else method.level_of(site.site, level, dtype)
                self.put(site, INACTIVE if own is None else own)
            return
        over, digest = self._over, [digests_of([("", own.watched())]) for own, _ in pairs]
        if digest == [digests_of([("", other.watched())]) for _, other in pairs]:
            for site, other in pairs:
                self.put(site, decided(other.tensors("threshold")[0]))
            self._sampling = False
            return
        share, pinned = _shares(method, pairs)
        self._set(method, share, [site for site, _ in pairs], pinned)
        self._over = over

    def _take_masks(self, leader: Run) -> None:
        """Masks and thresholds of the model that is followed, which are fixed."""
        theirs = self._copy_state(leader, ("threshold", "mask"))
        self.frozen, self.sparsity, self.steps = leader.frozen, leader.sparsity, leader.steps
        bound = self.bound_quietly()
        pairs = [(site, theirs[site.site.name]) for site in bound if site.site.name in theirs]
        method = pairs[0][0].sparse.method if pairs else None
        if isinstance(method, TargetMethod) and leader.level is not None:
            self._lower(method, pairs)

    def _catch_up(self, leader: Run, method: TargetMethod) -> None:
        """An average of later weights: of later steps, and with the masks that there are by now."""
        self.steps = leader.steps
        if method.keeps:
            self._copy_state(leader, ("mask",))

    def _copy_state(self, leader: Run, keys: tuple[str, ...]) -> dict[str, Bound]:
        """Take some of the method's tensors from the model that is followed; its sites by name."""
        theirs = {site.site.name: site for site in leader.bound_quietly()}
        for site in self.bound_quietly():
            other = theirs.get(site.site.name)
            if other is None:
                continue
            for module, parameter in site.places:
                for key in keys:
                    name = state_name(parameter, key)
                    value = getattr(other.owner, state_name(other.parameter, key)).detach()
                    if name in module.__dict__:
                        module.__dict__[name] = value.to(module.__dict__[name].device, copy=True)
        return theirs

    def _lower(self, method: TargetMethod, pairs: list[tuple[Bound, Bound]]) -> None:
        """Fixed thresholds may be too high: an average is smaller than what it averages.

        Where its weights would be zero in spite of the masks, the thresholds are lower: the share
        of zeros is the leader's.
        """
        own, (share, _) = [site for site, _ in pairs], _shares(method, pairs)
        if _shares(method, [(site, site) for site in own])[0] <= share:
            return
        fixed, over = [site.tensors("threshold")[0] for site in own], self._over
        self._set(method, share, own, pinned=-1.0)
        self._over = over
        for site, value in zip(own, fixed, strict=True):
            found = site.tensors("threshold")[0]
            self.put(site, value if ties.level(value) <= ties.level(found) else found)

    def restore(self) -> None:
        """The thresholds of the last step again, after an evaluation of other weights."""
        aside, self._aside = self._aside, None
        if aside is not None:
            with torch.no_grad(), torch.inference_mode(False):
                for item in self.bound_quietly():
                    if item.site.name in aside:
                        self.put(item, aside[item.site.name])
                        self._sampling = is_drawn(aside[item.site.name])
            self.stale = True  # until the next step, or until the weights are looked at

    def take_state(
        self, steps: int, sparsity: float | None, *, held: bool, frozen: bool, floor: float
    ) -> None:
        """Where a saved training stood, whose thresholds are in place."""
        self._aside, self.floor = None, floor
        self.steps, self.sparsity, self.held, self.frozen = steps, sparsity, held, frozen
        if sparsity is None:
            self._infer()
            self.frozen = frozen
        bound = self.bound()
        self._look_for_draws(bound)
        self._over = frozenset(site.site.name for site in bound)
        self.open_gradients(bound)
        stale = self.drawn() is not None
        self._note(bound, digest=self._leader is not None, stale=stale)

    def freeze(self) -> None:
        """The masks are in place, and fixed; copies whose weights have moved since take them now.

        Later the model may be gone.
        """
        self.frozen = True
        bound = self.bound_quietly()
        if any(item.learned() for item in bound):  # masks alone decide: nothing is projected later
            self._aside = self.level = None
            for item in bound:
                self.put(item, INACTIVE)
        self.open_gradients(bound)
        for follower in [run for run in self._followers if run._leader is self]:
            follower.settle(thorough=True)

    def begin_anew(self) -> None:
        """Step 0 of a schedule again; weights and thresholds stay."""
        self.take_over()
        self.steps, self.held = 0, False
        if self.moving is not None:
            self.floor = self.sparsity or 0.0
            self.open_gradients(self.bound_quietly())

    @property
    def follows(self) -> bool:
        """Whether this is the run of a copy, which nothing drives."""
        return self._leader is not None

    # --- state dicts

    def saved(self, prefix: str) -> dict[str, Tensor]:
        """The entries of a state dict."""
        leader, moved = self._leader, self._moved(thorough=False)
        if leader is not None and not moved and leader.steps != self._seen:
            self._seen = leader.steps
            moved = self._moved(thorough=True)
        sparsity = self._wanted(moved)
        steps = leader.steps if leader is not None and moved else self.steps
        flags = [
            float("nan") if sparsity is None else sparsity,
            float(self.held), float(self.frozen), self.floor,
        ]  # fmt: skip
        return {
            prefix + STEP: torch.tensor(steps, dtype=torch.int64),
            prefix + LEVEL: torch.tensor(flags, dtype=torch.float64),
        }

    def of_training(self, name: str, threshold: Tensor) -> Tensor:
        """A site's threshold as the last step has set it.

        After an evaluation of other weights it is not the one that is in place.
        """
        return threshold if self._aside is None else self._aside.get(name, threshold)

    def load(self, state: Mapping[str, Any], prefix: str) -> None:
        """Where a saved training stood; :meth:`loaded` follows when all modules are loaded."""
        step = state.get(prefix + STEP)
        self.loading, self.absent = step is not None, set()
        self._aside = None
        if step is None:  # the user's own weights: they say nothing of the training
            self.stale = True
            begins = self.steps == 0 and not (self.held or self.frozen)
            self._given = begins and self._leader is None
            return
        flags = state.get(prefix + LEVEL)
        # A copy that gets its own state back with other weights has been averaged.
        self._renewed = self._leader is None or flags is None or not self._is_saved(step, flags)
        self.steps, self._old_file = round(float(step)), flags is None
        if flags is None:
            self._infer()
        else:
            level, held, frozen, self.floor = flags.tolist()
            self.held, self.frozen = held > 0.5, frozen > 0.5
            self.sparsity = None if level != level else level  # noqa: PLR0124 (not a number)
            if self.sparsity is not None:
                self.sparsity = self._meant(level, step, flags)

    def _meant(self, level: float, step: Tensor, flags: Tensor) -> float:
        """The sparsity of a state dict that was averaged, or cast to a lower precision.

        An average over a ramp has that of no moment: it gets that of its step.
        """
        scheduled = None if self.held else self.scheduled()
        are_flags = all(flag in (0, 1) for flag in flags.tolist()[1:3])
        if scheduled is not None and (float(step) != self.steps or not are_flags):
            return scheduled
        rounding = torch.finfo(flags.dtype).eps if flags.is_floating_point() else 0.0
        near = [exact for exact in (self._method().target, scheduled) if exact is not None]
        return next((exact for exact in near if abs(exact - level) <= rounding), level)

    def loaded(self) -> None:
        """All modules have been loaded."""
        if self._given:
            self._given = False
            self.keep_zeros(pin=self.pin)
        if not self.loading:
            return
        self.loading = False
        bound = self.bound_quietly()
        self._look_for_draws(bound)
        self.open_gradients(bound)
        self._over = frozenset(site.site.name for site in bound)
        if self._old_file:  # it had masks when it was frozen, and only then
            self.frozen = any(mask.numel() for site in bound for mask in site.tensors("mask"))
            # Set by hand before the first step: the schedule knows nothing of it.
            values = [value for site in bound for value in site.tensors("threshold")]
            if self.sparsity == 0 and any(bool((value >= 0).any()) for value in values):
                self.sparsity = None
        if self._renewed:
            self._note(bound, digest=self._leader is not None)
            # An average of state dicts has averaged thresholds: before they are used to evaluate,
            # they are set for its weights, which changes none that fit.
            self.stale = True

    def _is_saved(self, step: Tensor, flags: Tensor) -> bool:
        """Whether this is what :meth:`saved` gave of the present state."""
        own = self.saved("")
        return bool(own[STEP] == step) and torch.equal(own[LEVEL], flags.to("cpu"))

    def _infer(self) -> None:
        """The sparsity of a file that does not say it."""
        method, total = self._method(), self._total_steps()
        self.held = self.frozen = self.stale = False
        self.sparsity = None
        if isinstance(method, TargetMethod) and total is not None:
            self.sparsity = self.scheduled()


def _shares(method: TargetMethod, pairs: list[tuple[Bound, Bound]]) -> tuple[float, float]:
    """Of pairs of sites: the share of zeros of the second ones, that of the first ones' masks.

    Both are shares of what the method's budget counts.
    """
    zeros = pinned = count = 0
    for site, other in pairs:
        cost = site.site.cost if method.budget == "macs" else 1
        weight, mask = other.static(), site.tensors("mask")[0]
        zeros += cost * (weight.numel() - int(weight.count_nonzero()))
        pinned += cost * (mask.numel() - int(mask.count_nonzero()))
        count += cost * weight.numel()
    return zeros / max(1, count), pinned / max(1, count)


def run_of(model: nn.Module) -> Run:
    """The run of a converted model."""
    run = conversion_of(model).run
    assert isinstance(run, Run)
    return run


def runs_in(model: nn.Module) -> list[Run]:
    """The runs of all converted models that are, or are parts of, a module, or have parts in it."""
    roots = [own for module in model.modules() if (own := found_conversion(module)) is not None]
    found = [*(own.run for own in roots), *(sparse.run for *_, sparse in marks(model))]
    return [run for run in dict.fromkeys(found) if isinstance(run, Run)]
