"""The thresholds of a converted model: what they were set for, whether they fit, setting them.

They are the exact quantile of the weights at the time when they were set. How they follow a
training, and the training of a model that was copied, is :class:`Run`.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from st3fx.errors import (
    DriftWarning,
    EmptyLayerWarning,
    MethodError,
    StateError,
    TraceWarning,
    few,
)
from st3fx.methods.base import (
    DrawnMethod,
    LearnedMethod,
    Method,
    ScheduledMethod,
    TargetMethod,
)
from st3fx.methods.targets import Target, targets
from st3fx.modules.marks import conversion_of, state_name
from st3fx.plan.sites import Site
from st3fx.sparsifier.bound import ASSIGNED, Bound, bound_sites, part_sites
from st3fx.sparsity.digest import Digest, digests
from st3fx.sparsity.drawing import decided, is_drawn, with_draw
from st3fx.sparsity.formula import INACTIVE
from st3fx.sparsity.granularity import magnitudes
from st3fx.sparsity.projection import project
from st3fx.sparsity.shards import ALONE, Across, local, local_part, masked
from st3fx.sparsity.threshold.scan import NotFiniteError
from st3fx.sparsity.threshold.search import GlobalThreshold
from st3fx.sparsity.ties import is_split
from st3fx.whose import callers_level

FEWEST_ZEROS = 0.05
"""Share of zeros of a site from which a model is sparse; fewer are chance."""


class Thresholds:
    """The thresholds of all sites of a model, which lie in its modules.

    Attributes:
        steps: Optimizer steps so far.
        sparsity: What the thresholds were last set for; ``None`` if a file did not say. Where each
            training step draws its own, it is that of the schedule, which an evaluation finds.
        held: Whether that was set by hand, and steps keep it instead of following the schedule.
        frozen: Whether masks are fixed.
        floor: Share of zeros that the model came with, from which the schedule starts.
        pin: Whether these stay zero.
        stale: Whether the weights have changed since the thresholds were set, as far as is known.
        level: The last global threshold ``T``: 0-dimensional; ``None`` while there is none.
        across: The processes that have the other stages of a pipeline.
        is_stage: Whether there are any.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.sparsity: float | None = 0.0
        self.held = False
        self.frozen = False
        self.floor, self.pin = 0.0, False
        self.stale = False
        self.level: Tensor | None = None
        self.across = ALONE
        self.is_stage = False
        self._root: weakref.ref[nn.Module] | None = None
        self._part: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # of a copy without the root
        self._over: frozenset[str] = frozenset()  # the sites that the thresholds were set over
        self._stamps: dict[str, list[tuple[int, int]]] = {}
        self._digests: dict[str, list[Digest]] = {}
        self._traceable = False
        self._sharded = False
        self._here = False  # on a CPU, where to compare values costs little
        self._aside: dict[str, Tensor] | None = None
        self._sampling = False  # the thresholds in place are such that masks are drawn
        self._finders: dict[str, GlobalThreshold] = {}  # of the global one, and of sites' own
        self._warned: set[str] = set()

    # --- the sites as they are

    @property
    def root(self) -> nn.Module | None:
        """The model, if it is still there and not only a part of it was copied."""
        return None if self._root is None else self._root()

    def bound(self) -> list[Bound]:
        """The sites, with the modules that own them.

        Raises:
            StateError: If one was replaced since the conversion.
        """
        root = self.root
        return part_sites(self._part, self) if root is None else bound_sites(root, self)

    def bound_quietly(self) -> list[Bound]:
        """As :meth:`bound`, without the sites that were replaced."""
        root = self.root
        if root is None:
            return part_sites(self._part, self)
        return bound_sites(root, self, quiet=True)

    def share(self, group: dist.ProcessGroup | None) -> None:
        """Have one threshold with the stages of a pipeline that other processes have.

        Args:
            group: One process for each stage, in their order; ``None`` is the whole model again.

        Raises:
            MethodError: If the method decides by more than one threshold.
        """
        if group is not None:
            _require_one_threshold(self._method())
        self.across = ALONE if group is None else Across(group)
        self.is_stage = group is not None

    # --- what has changed

    def _note(self, bound: list[Bound], *, digest: bool, stale: bool = False) -> None:
        """The thresholds fit the weights as they are now, unless they are ``stale``."""
        weights = [(site.site.name, site.watched()) for site in bound]
        self._stamps = {name: [*map(stamp, own)] for name, own in weights}
        # Sharded weights are other tensors in each forward: there is nothing to compare.
        self._sharded = any(isinstance(weight, DTensor) for _, own in weights for weight in own)
        self._traceable = all(is_plain(weight) for _, own in weights for weight in own)
        self._here = all(weight.device.type == "cpu" for _, own in weights for weight in own)
        self._digests = digests_of(weights) if digest and self._traceable else {}
        self.stale = stale

    def _moved(self, *, thorough: bool) -> bool:
        """Whether weights have changed since they were noted.

        Args:
            thorough: Look at the values, too, which some code writes to without a trace. Without
                digests to compare with the answer is yes.
        """
        bound = self.bound_quietly()
        if not bound:
            return False
        if not self._traceable:  # only processes together can look at shards: in forwards
            return thorough and self._sharded
        if self.moved(bound):
            return True
        if not thorough or not self._digests:
            return thorough
        weights = [(site.site.name, site.watched()) for site in bound]
        found = digests_of(weights).items()
        return any(self._digests.get(name) != digest for name, digest in found)

    def moved(self, bound: list[Bound]) -> bool:
        """Whether a weight has changed since the thresholds were last set."""
        return any(
            self._stamps.get(site.site.name) != [*map(stamp, site.watched())] for site in bound
        )

    # --- setting them

    @staticmethod
    def put(item: Bound, value: Tensor | float) -> None:
        """Give a site a threshold, in new tensors: a graph that is under way keeps the old ones."""
        for module, parameter in item.places:
            name = state_name(parameter, "threshold")
            device = module.__dict__[name].device
            if isinstance(value, Tensor) and (is_split(value) or is_drawn(value)):
                module.__dict__[name] = value.to(device, copy=True)
                continue
            fresh = torch.empty((), dtype=torch.float32, device=device)
            module.__dict__[name] = (
                fresh.copy_(value) if isinstance(value, Tensor) else fresh.fill_(value)
            )

    def _method(self) -> Method:
        return conversion_of(self.root).method

    def _total_steps(self) -> int | None:
        """Optimizer steps of the whole training; ``None`` if unknown, or the model has gone."""
        root = self.root
        return None if root is None else conversion_of(root).total_steps

    def set(
        self,
        sparsity: float,
        bound: list[Bound],
        *,
        drawn: float | None = None,
        wait: bool = True,
        keep: bool = False,
    ) -> dict[str, Digest]:
        """Set all thresholds for a sparsity over the present weights; 0 makes them inactive.

        Args:
            sparsity: Over all sites.
            bound: The sites.
            drawn: What training has in its place until the next step; everything else finds
                thresholds for ``sparsity``, as it does where weights were exchanged.
            wait: Else a GPU is not waited for: ties that no search has met yet are split one
                search later.
            keep: Whether what goes now stays away, where the method wants that.

        Returns:
            Digests of weights, by the names of their sites, where the search has read them.
        """
        method = self._method()
        assert isinstance(method, TargetMethod)
        self._aside = None
        own = sparsity if drawn is None else drawn
        if keep and method.keeps and method.granularity.most < 1:
            self._zero_pruned(bound)
        if isinstance(method, DrawnMethod):
            self._project(method, sparsity, bound)
        known: dict[str, Digest] = {}
        kept = not conversion_of(self.root).recompute_weights
        if keep and self._rests(method, own, bound):
            self.level = torch.zeros((), device=bound[0].tensors("threshold")[0].device)
            for item in bound:
                self.put(item, self.level)
        else:
            self._set(method, own, bound, wait=wait, known=known if kept else None)
        if isinstance(method, DrawnMethod) and self.level is not None:
            self._draw_masks(method, bound)
        if keep and method.keeps and sparsity > 0:
            masked_sites = any(item.tensors("mask")[0].numel() for item in bound)
            if sparsity != self.sparsity or not masked_sites:
                self.keep_pruned(bound)
        self.sparsity = sparsity
        self._note(bound, digest=False, stale=own != sparsity)
        return known

    def _rests(self, method: TargetMethod, sparsity: float, bound: list[Bound]) -> bool:
        """Whether masks hold all that a sparsity prunes: a search would find 0, among these."""
        masked_sites = any(item.tensors("mask")[0].numel() for item in bound)
        return method.keeps and 0 < sparsity == self.sparsity and masked_sites

    @staticmethod
    @torch.no_grad()
    def _project(method: DrawnMethod, sparsity: float, bound: list[Bound]) -> None:
        """Bring the probabilities into the budget; those of weights that a mask holds are 0."""
        for item in bound:
            own, mask = item.searched(), item.tensors("mask")[0]
            if mask.numel():
                local(own).mul_(local_part(mask, own))
        costs = [item.site.cost if method.budget == "macs" else 1 for item in bound]
        total = sum(cost * item.site.numel for cost, item in zip(costs, bound, strict=True))
        mean = total / max(1, sum(item.site.numel for item in bound))
        shares = [cost / mean for cost in costs]
        project([item.searched() for item in bound], (1 - sparsity) * total / mean, shares)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _draw_masks(self, method: DrawnMethod, bound: list[Bound]) -> None:
        """The next mask of each site is drawn, by the probabilities that there are."""
        temperature = method.temperature(self.steps, self._total_steps())
        for item in bound:
            own = decided(item.tensors("threshold")[0])
            self.put(item, with_draw(own, self.steps, temperature))
        self._sampling = True

    @torch.inference_mode(False)
    @torch.no_grad()
    def _decide(self, bound: list[Bound]) -> None:
        """Thresholds with which nothing is drawn, in place of those with which it is."""
        for item in bound:
            self.put(item, decided(item.tensors("threshold")[0]))
        self._sampling = False

    def _look_for_draws(self, bound: list[Bound]) -> None:
        """Take note of whether the thresholds in place, a file's, draw masks."""
        self._sampling = any(is_drawn(item.tensors("threshold")[0]) for item in bound)

    @staticmethod
    @torch.no_grad()
    def _zero_pruned(bound: list[Bound]) -> None:
        """Of N of M, latent weights that momentum moves would be among the N largest again."""
        for item in bound:
            mask = item.tensors("mask")[0]
            if mask.numel() and item.compute is None:
                weight = item.weight()
                local(weight).mul_(local_part(mask, weight))

    @staticmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    def keep_pruned(bound: list[Bound]) -> None:
        """Masks of what the thresholds leave: the rest stays zero from here on."""
        for item in bound:
            left = item.static() != 0
            for module, parameter in item.places:
                module.__dict__[state_name(parameter, "mask")] = left

    def kept(self, bound: list[Bound]) -> tuple[float, float]:
        """Of what the budget counts, the share that masks hold at zero, and that of one group."""
        method = self._method()
        macs = getattr(method, "budget", "weights") == "macs"
        gone = whole = one = 0
        for item in bound:
            cost = item.site.cost if macs else 1
            gone += cost * item.held()
            whole += cost * item.site.numel
            one = max(one, cost * method.granularity.largest(item.site))
        gone, whole = self.across.total([gone, whole])
        one = int(self.across.reduce([one], dist.ReduceOp.MAX)[0])
        return gone / max(1, whole), one / max(1, whole)

    def scheduled(self) -> float | None:
        """The sparsity that the present step should have; ``None`` if nothing says it."""
        if self.held:
            return self.sparsity
        method, total = self._method(), self._total_steps()
        if not isinstance(method, TargetMethod) or total is None:
            return None
        return method.at(self.steps, total, self.floor)

    def drawn(self) -> float | None:
        """The sparsity of the next training step, where that is drawn; else ``None``.

        It is drawn with the thresholds, and from the last step on it is the target.
        """
        root = self.root
        method = None if root is None else conversion_of(root).method
        if not isinstance(method, ScheduledMethod) or method.schedule.draw is None:
            return None
        conversion = conversion_of(root)
        total, step = conversion.total_steps, self.steps - self.steps % conversion.update_every
        if self.held or self.frozen or total is None or step < 1 or self.steps >= total:
            return None
        target = method.schedule.drawn(step)
        return None if target is None else method.at(self.steps, total, self.floor, target)

    def keep_zeros(self, *, pin: bool) -> float:
        """Start from the zeros that the weights have, once they have values; the share of them.

        A model is sparse if one of its sites has a share of zeros. Then none of its zeros is
        chance, and a site without any other weight was pruned; else such a site begins so, and
        trains.

        Args:
            pin: Whether these weights stay zero; else they may come back while others go.
        """
        self.pin, bound = pin, self.bound_quietly()
        weights = [(site, site.weight()) for site in bound if not site.site.computed]
        if not all(is_plain(weight) for _, weight in weights):
            return self.floor
        # Of groups those that are zero as a whole; a zero in another may come back with it.
        groupings = [site.sparse.method.granularity.constants(site.site) for site, _ in weights]
        left = [
            magnitudes(weight.detach(), *grouping) if grouping else weight.detach()
            for grouping, (_, weight) in zip(groupings, weights, strict=True)
        ]
        counts = [own.numel() - int(torch.count_nonzero(own)) for own in left]
        shares = [n / max(1, own.numel()) for n, (_, own) in zip(counts, weights, strict=True)]
        is_sparse = self.across.any(any(FEWEST_ZEROS <= share < 1 for share in shares))
        for (site, weight), share, own in zip(weights if pin else (), shares, left, strict=False):
            kept = share > 0 and is_sparse
            for module, parameter in site.places:
                mask = own != 0 if kept else weight.new_empty(0, dtype=torch.bool)
                module.__dict__[state_name(parameter, "mask")] = mask
            if kept and share == 1:
                self._warn_of_kept(site.site.name)
        total = sum(site.site.numel for site in bound)
        zeros, total = self.across.total([sum(counts), total])
        self.floor = zeros / max(1, total) if is_sparse else 0.0
        return self.floor

    def _pinned(self, bound: list[Bound]) -> float:
        """The sparsity that masks alone give: up to it no threshold is needed."""
        if not self.floor:
            return 0.0
        return self.floor if self.across.any(any(item.has_mask() for item in bound)) else 0.0

    @torch.inference_mode(False)
    @torch.no_grad()
    def _set(
        self,
        method: TargetMethod,
        sparsity: float,
        bound: list[Bound],
        pinned: float | None = None,
        *,
        wait: bool = True,
        known: dict[str, Digest] | None = None,
    ) -> None:
        sites = [item.site for item in bound]
        if self.is_stage and self.across.group is None:
            raise StateError(
                "this model is a stage of a pipeline, whose stages share one threshold: give its "
                "sparsifier their process group, sparsifier.group = ..."
            )
        found: dict[int, Tensor] = {}
        self.level, self._over = None, frozenset(site.name for site in sites)
        if sparsity > (self._pinned(bound) if pinned is None else pinned):
            for target in targets(method, sites, sparsity):
                if target.share > 0:
                    found |= self._search(method, bound, target, sparsity, wait=wait, known=known)
        self._sampling = False
        for index, item in enumerate(bound):
            self.put(item, found.get(index, INACTIVE))

    def _search(
        self,
        method: TargetMethod,
        bound: list[Bound],
        target: Target,
        sparsity: float,
        *,
        wait: bool,
        known: dict[str, Digest] | None,
    ) -> dict[int, Tensor]:
        """Thresholds of the sites that share one, by their positions."""
        items = [bound[index] for index in target.sites]
        sites = [item.site for item in items]
        finder = self._finders.setdefault(target.key, GlobalThreshold())
        costs = [site.cost for site in sites] if method.budget == "macs" else None
        # What a mask holds at zero is zero, whatever its latent weight has become.
        pairs = [(item.searched(), item.tensors("mask")[0]) for item in items]
        weights = [masked(weight, mask) if mask.numel() else weight for weight, mask in pairs]
        groupings = [method.granularity.grouping(site) for site in sites]
        scales = [method.scale(site) for site in sites]
        with diverged([site.name for site in sites]):
            level = finder.find(
                weights, scales, target.share, costs, groupings,
                wait=wait, digest=known is not None, across=self.across,
            )  # fmt: skip
        if known is not None:
            known |= {
                sites[i].name: own
                for i, own in finder.digests.items()
                if weights[i] is items[i].weight()  # not its masked values, nor what is learned
            }
        self._warn_of_empty([sites[index].name for index in finder.empty], sparsity)
        if not target.key:
            self.level = level
        return {
            place: finder.ties[index]
            if index in finder.ties
            else method.level_of(item.site, level, (item.learned() or item.sources())[0].dtype)
            for index, (place, item) in enumerate(zip(target.sites, items, strict=True))
        }

    # --- what is said once

    def _warn_of_empty(self, names: Sequence[str], sparsity: float) -> None:
        """One line for all that are new at this moment: of a deep model there may be dozens."""
        keys = {name: f"{EmptyLayerWarning.__name__} {name}" for name in names}
        new = [name for name, key in keys.items() if key not in self._warned]
        if not new:
            return
        first, *others = new
        also = f", and so have {few(others, limit=3)}" if others else ""
        message = (
            f"{first} has lost all of its weights at sparsity {sparsity:.4g}{also}: exclude "
            f"{'them' if others else 'it'}, lower the sparsity, or normalise magnitudes (st3-sigma)"
        )
        self.warn(message, EmptyLayerWarning, first)
        self._warned |= set(keys.values())

    def _warn_of_kept(self, name: str) -> None:
        message = (
            f"{name} has no weight but zeros in a model that is sparse, and keeps them: if it is "
            "new and is to train, initialise it with other values, or give keep_zeros=False"
        )
        self.warn(message, EmptyLayerWarning, f"kept {name}")

    def say_of_trace(self, name: str) -> None:
        """A tracer of torch.fx has read an effective weight, which stands in its graph from now."""
        self.warn(
            f"torch.fx traces a converted model: {name} and its like stand in the graph as the "
            "effective weights of this moment; fold first for a graph to train or to keep",
            TraceWarning,
        )

    def warn(self, message: str, category: type[Warning], subject: str = "") -> None:
        """Warn, once of each subject, which is the message itself if none is given."""
        key = f"{category.__name__} {subject or message}"
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, category, stacklevel=callers_level())

    def warn_of_drift(self, *, folded: bool = False) -> None:
        """Name sites that were replaced, where the forward goes on without them.

        Args:
            folded: Sites whose parameter was assigned, too, unless it has zeros itself, as what
                tools make that fuse layers.
        """
        root = self.root

        def report(site: Site, reason: str, message: str) -> None:
            if reason == ASSIGNED:
                dense = folded and bool(self.sparsity) and root is not None
                if not dense or not bool(root.get_parameter(site.name).all()):  # type: ignore[union-attr]
                    return
            self.warn(message, DriftWarning)

        if root is not None:
            bound_sites(root, self, quiet=True, report=report)


@contextlib.contextmanager
def diverged(names: list[str]) -> Iterator[None]:
    """Say of weights that are no numbers which they are, if that is known in this process.

    Args:
        names: Of the sites, in their order.

    Raises:
        StateError: For a :class:`NotFiniteError` inside.
    """
    try:
        yield
    except NotFiniteError as error:
        where = f" in {names[error.site]}" if error.site >= 0 else ""
        raise StateError(
            f"some weights are {error.what}{where}: the training has diverged, or the model came "
            "with them; lower the learning rate, or look at the weights that were loaded"
        ) from None


def _require_one_threshold(method: Method) -> None:
    """Refuse for stages of a pipeline what is decided from more than one threshold.

    Raises:
        MethodError: Then.
    """
    if isinstance(method, LearnedMethod):
        return
    if isinstance(method, DrawnMethod) or not isinstance(method, ScheduledMethod):
        raise MethodError(
            f"{method.name} decides from all weights of a model at once, and a stage of a pipeline "
            "has some: take a method with one threshold (st3, gmp, feather, lrr) or learned ones"
        )
    if method.own_targets or method.schedule.draw is not None:
        what = "sparsity_of" if method.own_targets else "a sparsity drawn for each step"
        raise MethodError(f"stages of a pipeline share one threshold: leave {what} out")


def digests_of(weights: list[tuple[str, list[Tensor]]]) -> dict[str, list[Digest]]:
    """Digests of the tensors of several sites, by their names, in one pass."""
    found = iter(digests([weight for _, own in weights for weight in own], wait=True))
    return {name: [next(found) for _ in own] for name, own in weights}


def stamp(weight: Tensor) -> tuple[int, int]:
    """Differs when the tensor was written to by an operator, or has other memory."""
    version = 0 if weight.is_inference() else weight._version
    return version, weight.untyped_storage()._cdata if is_plain(weight) else id(weight)


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is a tensor of torch's own with values: not sharded, nor on meta."""
    return type(weight) in (Tensor, nn.Parameter) and not weight.is_meta
